// Launches whose blocks may start before the stream's preceding kernel has ended (programmatic dependent launch): such a kernel
// calls wait_for_predecessor() ahead of what the other one may write.
#pragma once

#include "fdpp/device.h"
#include "kernels/common/gpu.h"

namespace fdpp {

struct OverlappedLaunch {
  OverlappedLaunch(int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream, const DeviceInfo& device) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = device.compute_capability >= 90 ? 1 : 0;  // older ones know no such launches
  }
  OverlappedLaunch(const OverlappedLaunch&) = delete;
  OverlappedLaunch& operator=(const OverlappedLaunch&) = delete;

  cudaLaunchConfig_t config{};

 private:
  cudaLaunchAttribute attribute{};
};

}  // namespace fdpp
