// The flat GEMM's instances, which compile side by side.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

using FlatLaunch = Status (*)(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device,
                              cudaStream_t stream);

// The instances of 16-bit weights of the activations' type, and of others.
extern const FlatLaunch kFlatHalfSame, kFlatHalfInt8, kFlatHalfFp8, kFlatHalfInt4;
extern const FlatLaunch kFlatBf16Same, kFlatBf16Int8, kFlatBf16Fp8, kFlatBf16Int4;

// Clusters of so many blocks that run at once, one block a multiprocessor. A GPC has 16 multiprocessors or a few more, and
// a cluster lies in one.
inline int flat_clusters(const DeviceInfo& d, int blocks) {
  return blocks <= 2 ? d.multiprocessors / blocks : d.multiprocessors / 16 * (16 / blocks);
}

}  // namespace fdpp
