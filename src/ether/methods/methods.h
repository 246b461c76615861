// The methods, one function a file's method; registry.cpp lists them.
#pragma once

#include "ether/methods/method.h"

namespace ether::methods {

Method ether();
Method ether_plus();
Method hra();
Method oft();
Method naive();
Method lora();
Method ia3();
Method red();
Method vera();
Method delora();
Method adalora();
Method bitfit();
Method ln_tuning();
Method lorta();
Method loha();
Method randlora();
Method vblora();
Method fourierft();
Method miss();
Method hiwi();
Method full();
Method head();

}  // namespace ether::methods
