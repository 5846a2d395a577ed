// From a plan to a launch of flat_kernel(), for one type of activations and one format of weights.
#pragma once

#include "kernels/common/ceil_div.h"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/gemm/cuda/flat_kernel.cuh"
#include "kernels/gemm/cuda/flat_mma.h"

namespace fdpp {
namespace {

constexpr int kMaxTokens = 32;
constexpr int kMaxCluster = 8;
constexpr int kDefaultStages = 6;

// As many stages as asked for, where they fit; an even number, or one. By default what leaves room for a second block on
// the multiprocessor, so that the next launch can fill its own before this one has ended.
template <typename Shape>
int stages_of(const Shape& shape, const GemmSplit& split, bool cluster, const DeviceInfo& device) {
  const auto fit = [&](int stages, int64_t bytes) { return shape.shared_bytes(stages, cluster) <= bytes; };
  const int64_t all = device.shared_memory_per_block, half = (all - 1024) / 2;
  if (split.stages == 1) return 1;
  int stages = split.stages > 0 ? std::min(split.stages, kFlatMaxStages) / kFlatGroups * kFlatGroups : kDefaultStages;
  const int64_t room = split.stages == 0 && fit(2 * kFlatGroups, half) ? half : all;
  while (stages > kFlatGroups && !fit(stages, room)) stages -= kFlatGroups;
  return stages;
}

template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, bool kAligned, bool kPlain,
          bool kWgmma = false>
Status launch_kernel(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device, cudaStream_t stream) {
  using Shape = FlatShape<Weights<T, kFormat>, kTokenTiles, kRows, kWgmma>;
  const GemmProblem& p = params.problem;
  const bool hopper = device.compute_capability >= 90;
  FlatArgs<T> args{static_cast<const T*>(params.a),
                   static_cast<const unsigned char*>(params.b),
                   static_cast<const T*>(params.scales),
                   static_cast<const unsigned char*>(params.zero_points),
                   Epilogue<T>(params)};
  args.m = p.m, args.n = p.n, args.k = static_cast<int>(p.k);
  args.row_bytes = p.blocks() > 0 ? p.blocks() * p.block_size / 2 : p.k * Weights<T, kFormat>::kBits / 8;
  args.blocks = static_cast<int>(p.blocks());
  args.block_log = p.blocks() > 0 ? log2_of(static_cast<int>(p.block_size)) : 0;
  args.gated = p.activation == Activation::silu_mul;
  args.token_blocks = static_cast<int>(ceil_div(p.m, Shape::kTokens));
  args.tiles = static_cast<int>(ceil_div(p.n, args.gated ? kRows / 2 : kRows) * args.token_blocks);
  args.slices = static_cast<int>(ceil_div(p.k, Shape::kSlice));
  args.cluster = 1;
  while (hopper && 2 * args.cluster <= std::min({split.pieces, kMaxCluster, args.slices})) args.cluster *= 2;
  const int blocks = split.algorithm > 0 ? 2 : 1;  // of a multiprocessor
  args.clusters = std::min(args.tiles, flat_clusters(device, args.cluster) * blocks);
  const Shape shape(args.block_log);
  args.stages = stages_of(shape, split, args.cluster > 1, device);

  static SharedMemoryGrant grant;
  const auto kernel = flat_kernel<T, kFormat, kTokenTiles, kRows, kAligned, kPlain, kWgmma>;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel)));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = args.cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.clusters * args.cluster));
  config.blockDim = dim3(kFlatThreads + kFlatFillers);
  config.dynamicSmemBytes = shape.shared_bytes(args.stages, args.cluster > 1);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = args.cluster > 1 ? 2 : hopper ? 1 : 0;
  return check_gpu(cudaLaunchKernelEx(&config, kernel, args), "cuda_flat_mma");
}

template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, bool kAligned>
Status launch(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device, cudaStream_t stream) {
  if constexpr (Weights<T, kFormat>::kBlocks) {
    if (params.zero_points != nullptr || params.problem.block_size < 32)
      return launch_kernel<T, kFormat, kTokenTiles, kRows, kAligned, false>(params, split, device, stream);
  }
  return launch_kernel<T, kFormat, kTokenTiles, kRows, kAligned, true>(params, split, device, stream);
}

// Tiles of 8 tokens of a block, of the numbers that are compiled; more than 32 tokens are cut into equal blocks.
int token_tiles(const GemmProblem& p, bool aligned) {
  const int64_t m = std::max<int64_t>(p.m, 1), cuts = ceil_div(m, kMaxTokens), tiles = ceil_div(ceil_div(m, cuts), 8);
  return tiles == 1 || (aligned && tiles == 2) ? static_cast<int>(tiles) : 4;
}

template <typename T, WeightFormat kFormat, int kTokenTiles>
Status launch_rows(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  switch (split.rows) {
    case 16:
      if constexpr (kTokenTiles <= 2 && Weights<T, kFormat>::kBits == 16)
        return launch<T, kFormat, kTokenTiles, 16, true>(params, split, d, stream);
      break;
    case 32: return launch<T, kFormat, kTokenTiles, 32, true>(params, split, d, stream);
    case 128: return launch<T, kFormat, kTokenTiles, 128, true>(params, split, d, stream);
    default: return launch<T, kFormat, kTokenTiles, 64, true>(params, split, d, stream);
  }
  return launch<T, kFormat, kTokenTiles, 64, true>(params, split, d, stream);
}

template <typename T, WeightFormat kFormat>
Status launch_format(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  const int64_t row_bytes = p.blocks() > 0 ? p.blocks() * p.block_size / 2 : p.k * Weights<T, kFormat>::kBits / 8;
  const bool aligned = rows_aligned_16(params.a, p.k * 2) && rows_aligned_16(params.b, row_bytes) &&
                       reinterpret_cast<uintptr_t>(params.scales) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(params.zero_points) % 4 == 0;
  const int tiles = token_tiles(p, aligned);
  if (!aligned)
    return tiles == 1 ? launch<T, kFormat, 1, 64, false>(params, split, d, stream)
                      : launch<T, kFormat, 4, 64, false>(params, split, d, stream);
  switch (tiles) {
    case 1: return launch_rows<T, kFormat, 1>(params, split, d, stream);
    case 2: return launch_rows<T, kFormat, 2>(params, split, d, stream);
    default: return launch_rows<T, kFormat, 4>(params, split, d, stream);
  }
}

}  // namespace
}  // namespace fdpp
