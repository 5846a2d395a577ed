// Versions: of this library, of the TensorRT that it was built for and of the one that runs.
#pragma once

#include "fdpp/status.h"

namespace fdpp::trt {

inline constexpr const char* kLibraryVersion = FDPP_VERSION;

// not_supported: the TensorRT of this process has another interface of plugins than this library was built for. TensorRT
// for RTX, whose registry takes plugins of version 3 too, counts from 1 on.
Status check_running_version();

}  // namespace fdpp::trt
