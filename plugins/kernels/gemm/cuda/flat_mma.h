// The flat GEMM's instances, which compile side by side.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

using FlatLaunch = Status (*)(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device,
                              cudaStream_t stream);

}  // namespace fdpp
