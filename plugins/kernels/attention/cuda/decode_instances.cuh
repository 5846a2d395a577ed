// The decode kernels for one pair of element types, as a table. One generated file for each pair
// (cmake/KernelInstances).
#pragma once

#include "kernels/attention/cuda/decode_kernel.cuh"
#include "kernels/attention/cuda/launch.h"

namespace fdpp {

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
Status launch_decode(const AttentionParams& params, const DecodeLaunch& launch, int shared_bytes,
                     const ExecutionContext& context) {
  const auto kernel = &decode_kernel<T, C, D, NT, WR, kBulk>;
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel)));
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.clusters * launch.cluster);
  config.blockDim = dim3(DecodeShape<C, D, NT, WR>::kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes;
  if (kBulk) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = launch.cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.numAttrs = launch.cluster > 1 ? 2 : 1;
  }
  return check_gpu(cudaLaunchKernelEx(&config, kernel, make_args<T, C>(params, context), launch), "decode_kernel");
}

template <typename T, typename C, int D, int NT, int WR, bool kBulk>
constexpr DecodeInstance decode_instance() {
  using Shape = DecodeShape<C, D, NT, WR>;
  return {D,
          Shape::kRows,
          Shape::kTileKeys,
          Shape::kTileBytes,
          static_cast<int>(sizeof(typename Shape::Fixed)),
          static_cast<int>(sizeof(typename Shape::Sums)),
          kDecodeBlocks<D, NT, WR, kBulk>,
          kBulk && Shape::kClusters,
          launch_decode<T, C, D, NT, WR, kBulk>};
}

// More than 16 query rows over an 8-bit cache are worked on 16 at a time.
template <typename T, typename C, bool kBulk>
inline constexpr DecodeInstance kByteInstances[] = {
    decode_instance<T, C, 64, 1, 1, kBulk>(),  decode_instance<T, C, 64, 1, 2, kBulk>(),
    decode_instance<T, C, 128, 1, 1, kBulk>(), decode_instance<T, C, 128, 1, 2, kBulk>(),
    decode_instance<T, C, 256, 1, 1, kBulk>(), decode_instance<T, C, 256, 1, 2, kBulk>(), {}};

template <typename T, bool kBulk>
inline constexpr DecodeInstance kPlainInstances[] = {
    decode_instance<T, T, 64, 1, 1, kBulk>(),  decode_instance<T, T, 64, 1, 2, kBulk>(),
    decode_instance<T, T, 64, 2, 4, kBulk>(),  decode_instance<T, T, 128, 1, 1, kBulk>(),
    decode_instance<T, T, 128, 1, 2, kBulk>(), decode_instance<T, T, 128, 2, 4, kBulk>(),
    decode_instance<T, T, 192, 1, 1, kBulk>(), decode_instance<T, T, 192, 1, 2, kBulk>(),
    decode_instance<T, T, 192, 2, 4, kBulk>(), decode_instance<T, T, 256, 1, 1, kBulk>(),
    decode_instance<T, T, 256, 1, 2, kBulk>(), decode_instance<T, T, 256, 2, 4, kBulk>(), {}};

template <typename T, typename C, bool kBulk>
constexpr const DecodeInstance* instances_of() {
  if constexpr (sizeof(C) == 1)
    return kByteInstances<T, C, kBulk>;
  else
    return kPlainInstances<T, kBulk>;
}

}  // namespace fdpp
