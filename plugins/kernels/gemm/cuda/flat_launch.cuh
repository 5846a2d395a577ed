// From a plan to a launch of flat_kernel(), for one type of activations and one format of weights.
#pragma once

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/common/tensor_map.h"
#include "kernels/gemm/cuda/flat_kernel.cuh"
#include "kernels/gemm/cuda/flat_mma.h"

namespace fdpp {
namespace {

constexpr int kMaxTokens = 32;
constexpr int kMaxCluster = 8;
constexpr int kDefaultRingBytes = 6 * 16384;  // of weights

// As many stages as asked for, where they fit; an even number, or one. By default what leaves room for a second block on
// the multiprocessor, so that the next launch can fill its own before this one has ended.
template <typename Shape>
int stages_of(const Shape& shape, const GemmSplit& split, bool cluster, const DeviceInfo& device) {
  const auto fit = [&](int stages, int64_t bytes) { return shape.shared_bytes(stages, cluster) <= bytes; };
  const int64_t all = device.shared_memory_per_block, half = (all - 1024) / 2;
  if (split.stages == 1) return 1;
  int stages = split.stages > 0 ? std::min(split.stages, kFlatMaxStages) / kFlatGroups * kFlatGroups
                                : kDefaultRingBytes / Shape::kStageBytes;
  const int64_t room = split.stages == 0 && fit(2 * kFlatGroups, half) ? half : all;
  while (stages > kFlatGroups && !fit(stages, room)) stages -= kFlatGroups;
  return stages;
}

// The maps of FlatFill::tensor.
template <typename Shape, typename T>
Status make_maps(const FlatArgs<T>& args, const Shape& shape, FlatMaps* maps) {
  const int halves = args.gated ? 2 : 1;
  FDPP_RETURN_IF_ERROR(make_tensor_map(args.b,
                                       {.element_bytes = 1,
                                        .columns = kPanelRowBytes,
                                        .rows = args.n,
                                        .planes = args.row_bytes / kPanelRowBytes,
                                        .row_stride = args.row_bytes,
                                        .plane_stride = kPanelRowBytes,
                                        .box_columns = kPanelRowBytes,
                                        .box_rows = Shape::kRows / halves,
                                        .box_planes = Shape::kWeightPanels,
                                        .groups = halves,
                                        .group_stride = args.n * args.row_bytes},
                                       &maps->weights));
  FDPP_RETURN_IF_ERROR(make_tensor_map(args.a,
                                       {.element_bytes = 2,
                                        .columns = kPanelColumns,
                                        .rows = args.m,
                                        .planes = args.k / kPanelColumns,
                                        .row_stride = int64_t{args.a_row_stride} * 2,
                                        .plane_stride = kPanelRowBytes,
                                        .box_columns = kPanelColumns,
                                        .box_rows = Shape::kTokens,
                                        .box_planes = Shape::kTokenPanels},
                                       &maps->tokens));
  if (args.blocks == 0) return {};
  return make_tensor_map(args.scales,
                         {.element_bytes = 2,
                          .columns = args.blocks,
                          .rows = args.n,
                          .planes = halves,
                          .row_stride = args.blocks * 2,
                          .plane_stride = args.n * args.blocks * 2,
                          .box_columns = shape.scale_row_bytes() / 2,
                          .box_rows = Shape::kRows / halves,
                          .box_planes = halves,
                          .swizzled = false},
                         &maps->scales);
}

template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, FlatFill kFill, bool kPlain,
          bool kWgmma = false>
Status launch_kernel(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device, cudaStream_t stream) {
  using Shape = FlatShape<Weights<T, kFormat>, kTokenTiles, kRows, kFill, kWgmma>;
  const GemmProblem& p = params.problem;
  const bool hopper = device.compute_capability >= 90;
  FlatArgs<T> args{static_cast<const T*>(params.a),
                   static_cast<const unsigned char*>(params.b),
                   static_cast<const T*>(params.scales),
                   static_cast<const unsigned char*>(params.zero_points),
                   Epilogue<T>(params)};
  args.m = p.m, args.n = p.n, args.k = static_cast<int>(p.k);
  args.a_row_stride = static_cast<int>(p.a_row_stride);
  args.row_bytes = weight_row_bytes(p);
  args.blocks = static_cast<int>(p.blocks());
  args.block_log = block_log(p);
  args.gated = p.activation == Activation::silu_mul;
  args.token_blocks = static_cast<int>(ceil_div(p.m, Shape::kTokens));
  const int tiles = static_cast<int>(ceil_div(p.n, args.gated ? kRows / 2 : kRows) * args.token_blocks);
  args.slices = static_cast<int>(ceil_div(p.k, Shape::kSlice));
  args.cluster = 1;
  while (hopper && 2 * args.cluster <= std::min({split.pieces, kMaxCluster, args.slices})) args.cluster *= 2;
  args.cluster_log = log2_of(args.cluster);
  const int blocks = split.algorithm > 0 ? 2 : 1;  // of a multiprocessor
  const int clusters = std::min(tiles, flat_clusters(device, args.cluster) * blocks);
  args.tiles_each = tiles / clusters, args.tiles_over = tiles % clusters;
  args.next = NextWeight(params, clusters * args.cluster);
  const Shape shape(args.block_log);
  args.stages = stages_of(shape, split, args.cluster > 1, device);

  static SharedMemoryGrant grant;
  const auto kernel = flat_kernel<T, kFormat, kTokenTiles, kRows, kFill, kPlain, kWgmma>;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel)));
  const OverlappedLaunch launched(int64_t{clusters} * args.cluster, kFlatThreads + kFlatFillers<kFill>,
                                  shape.shared_bytes(args.stages, args.cluster > 1), stream, device, args.cluster);
  std::conditional_t<kFill == FlatFill::tensor, FlatMaps, NoFlatMaps> maps;
  if constexpr (kFill == FlatFill::tensor) FDPP_RETURN_IF_ERROR(make_maps(args, shape, &maps));
  return check_gpu(cudaLaunchKernelEx(&launched.config, kernel, args, maps), "the flat GEMM");
}

// What `params` and the device allow, best first.
inline FlatFill fill_of(const GemmParams& params, const DeviceInfo& device) {
  const GemmProblem& p = params.problem;
  const auto at_16 = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const int64_t row_bytes = weight_row_bytes(p);
  if (!at_16(params.a) || !at_16(params.b) || !at_16(params.scales) || p.k % 8 != 0 || p.a_row_stride % 8 != 0 ||
      row_bytes % 16 != 0 || reinterpret_cast<uintptr_t>(params.zero_points) % 4 != 0)
    return FlatFill::stores;
  const bool plain = p.blocks() == 0 || (params.zero_points == nullptr && p.block_size >= 32 && p.blocks() % 8 == 0);
  const bool panels = row_bytes % kPanelRowBytes == 0 && p.k % kPanelColumns == 0;
  return device.compute_capability >= 90 && plain && panels ? FlatFill::tensor : FlatFill::copies;
}

template <typename T, WeightFormat kFormat, int kTokenTiles, int kRows, FlatFill kFill>
Status launch(const GemmParams& params, const GemmSplit& split, const DeviceInfo& device, cudaStream_t stream) {
  if constexpr (Weights<T, kFormat>::kBlocks && kFill != FlatFill::tensor) {
    if (params.zero_points != nullptr || params.problem.block_size < 32)
      return launch_kernel<T, kFormat, kTokenTiles, kRows, kFill, false>(params, split, device, stream);
  }
  return launch_kernel<T, kFormat, kTokenTiles, kRows, kFill, true>(params, split, device, stream);
}

// Tiles of 8 tokens of a block, of the numbers that are compiled; more than 32 tokens are cut into equal blocks.
inline int token_tiles(const GemmProblem& p, FlatFill fill) {
  const int64_t m = std::max<int64_t>(p.m, 1), cuts = ceil_div(m, kMaxTokens), tiles = ceil_div(ceil_div(m, cuts), 8);
  return tiles == 1 || (fill != FlatFill::stores && tiles == 2) ? static_cast<int>(tiles) : 4;
}

template <typename T, WeightFormat kFormat, FlatFill kFill, int kTokenTiles>
Status launch_rows(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  switch (split.rows) {
    case 16:
      if constexpr (kTokenTiles <= 2 && Weights<T, kFormat>::kBits == 16)
        return launch<T, kFormat, kTokenTiles, 16, kFill>(params, split, d, stream);
      break;
    case 32: return launch<T, kFormat, kTokenTiles, 32, kFill>(params, split, d, stream);
    case 128: return launch<T, kFormat, kTokenTiles, 128, kFill>(params, split, d, stream);
    default: break;
  }
  return launch<T, kFormat, kTokenTiles, 64, kFill>(params, split, d, stream);
}

template <typename T, WeightFormat kFormat, FlatFill kFill>
Status launch_tokens(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  switch (token_tiles(params.problem, kFill)) {
    case 1: return launch_rows<T, kFormat, kFill, 1>(params, split, d, stream);
    case 2: return launch_rows<T, kFormat, kFill, 2>(params, split, d, stream);
    default: return launch_rows<T, kFormat, kFill, 4>(params, split, d, stream);
  }
}

template <typename T, WeightFormat kFormat>
Status launch_format(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  switch (fill_of(params, d)) {
    case FlatFill::tensor: return launch_tokens<T, kFormat, FlatFill::tensor>(params, split, d, stream);
    case FlatFill::copies: return launch_tokens<T, kFormat, FlatFill::copies>(params, split, d, stream);
    default: break;
  }
  return token_tiles(params.problem, FlatFill::stores) == 1
             ? launch<T, kFormat, 1, 64, FlatFill::stores>(params, split, d, stream)
             : launch<T, kFormat, 4, 64, FlatFill::stores>(params, split, d, stream);
}

}  // namespace
}  // namespace fdpp
