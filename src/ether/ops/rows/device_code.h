// The operations' device code, all *.cuh files in one text (cmake/DeviceCode.cmake).
#pragma once

namespace ether::ops {

extern const char* const kDeviceCode;

}  // namespace ether::ops
