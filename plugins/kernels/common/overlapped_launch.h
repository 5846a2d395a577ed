// Launches whose blocks may start before the stream's preceding kernel has ended (programmatic dependent launch): such a kernel
// calls wait_for_predecessor() ahead of what the other one may write.
#pragma once

#include "fdpp/device.h"
#include "kernels/common/gpu.h"

namespace fdpp {

struct OverlappedLaunch {
  // `cluster`: blocks in one, 1 on devices that know no clusters.
  OverlappedLaunch(int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream, const DeviceInfo& device,
                   int cluster = 1) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = device.compute_capability < 90 ? 0 : cluster > 1 ? 2 : 1;  // older ones know neither
  }
  OverlappedLaunch(const OverlappedLaunch&) = delete;
  OverlappedLaunch& operator=(const OverlappedLaunch&) = delete;

  cudaLaunchConfig_t config{};

 private:
  cudaLaunchAttribute attributes[2] = {};
};

}  // namespace fdpp
