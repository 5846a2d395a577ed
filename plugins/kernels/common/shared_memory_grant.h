// Large blocks of shared memory must be asked for.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/common/gpu.h"

namespace fdpp {

// Permission for one kernel to use more than 48 KB of shared memory, asked for once per device, with the L1 cache given
// up for it: tiles bypass L1. Threads that race ask twice, which does no harm.
class SharedMemoryGrant {
 public:
  // `bytes` 0: as much as a block can have.
  Status ensure(const void* kernel, int bytes = 0) {
    int device = 0;
    FDPP_GPU(cudaGetDevice(&device));
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (granted_.load(std::memory_order_relaxed) & bit) return {};
    if (bytes == 0) FDPP_GPU(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    FDPP_GPU(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    FDPP_GPU(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
    granted_.fetch_or(bit, std::memory_order_relaxed);
    return {};
  }

 private:
  std::atomic<uint64_t> granted_{0};
};

}  // namespace fdpp
