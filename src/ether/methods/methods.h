// The methods, one function a file's method; registry.cpp lists them.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

Method ether();
Method ether_plus();
Method hra();
Method oft();
Method oft_paper();
Method boft();
Method naive();
Method lora();
Method ia3();
Method red();
Method road();
Method vera();
Method delora();
Method adalora();
Method shira();
Method pafi();
Method id3();
Method bitfit();
Method ln_tuning();
Method lorta();
Method loha();
Method lokr();
Method gralora();
Method randlora();
Method trainable_tokens();
Method vblora();
Method fourierft();
Method waveft();
Method c3a();
Method hira();
Method miss();
Method hiwi();
Method magnitude();
Method bottleneck();
Method prefix();
Method unipelt();
Method full();
Method head();

}  // namespace ether::methods
