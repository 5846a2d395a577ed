// The variant cuda_flat_mma.
#include "kernels/gemm/cuda/flat_mma.h"

#include <algorithm>
#include <vector>

#include "kernels/common/ceil_div.h"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  return supports_half_gemm(problem, device, why);
}

bool is_quantised(const GemmProblem& p) { return weight_dtype(p.weight_format) != p.dtype; }

// A split that an H200 liked, and how much less than others of equal balance.
struct Liked {
  GemmSplit split;
  double less;
};
constexpr Liked kFew[] = {
    {{1, 16, 0, 1}, 0.26}, {{1, 32, 0, 1}, 0.15}, {{1, 64, 0, 1}, 0}, {{2, 16, 0, 1}, 0.12}, {{2, 32, 0, 1}, 0.68}};
constexpr Liked kSome[] = {{{1, 16, 0, 0}, 0}, {{1, 64, 0, 1}, 0.96}, {{2, 64, 0, 1}, 0.92}};
constexpr Liked kMany[] = {{{1, 64, 0, 1}, 0}, {{2, 64, 12, 0}, -0.1}};

// How far a split is from the best: blocks that end at different times, multiprocessors with less than two blocks, what the
// end of a tile costs beside its slices of K, a cluster's more so, and what the split is liked less.
double badness(const GemmProblem& p, const DeviceInfo& d, const Liked& liked) {
  constexpr int64_t kSliceRows = 8192;  // of 16-bit weights: elements of a slice times rows of a tile
  const GemmSplit& s = liked.split;
  const int64_t rows = p.weight_rows(), tiles = ceil_div(rows, s.rows) * ceil_div(std::max<int64_t>(p.m, 1), 32);
  const int64_t clusters = std::min<int64_t>(tiles, int64_t{flat_clusters(d, s.pieces)} * (s.algorithm + 1));
  const int64_t stacked = clusters * s.pieces > d.multiprocessors ? 2 : 1;
  const double most = static_cast<double>(ceil_div(tiles, clusters) * s.rows * stacked) / s.pieces;
  const double uneven = most * d.multiprocessors / static_cast<double>(rows) - 1;
  const double empty = std::max(0.0, 1 - static_cast<double>(clusters * s.pieces) / (2.0 * d.multiprocessors));
  const double end = (p.m <= 8 ? 2.0 : 7.0) + (s.pieces > 1 ? 8.9 : 0.0);
  return 2 * uneven + 2.4 * empty + end / static_cast<double>(ceil_div(p.k, kSliceRows / s.rows)) + liked.less;
}

template <size_t count>
GemmSplit best_liked(const GemmProblem& p, const DeviceInfo& d, const Liked (&all)[count]) {
  const Liked* best = nullptr;
  double least = 0;
  for (const Liked& liked : all) {
    const double bad = badness(p, d, liked);
    if (best == nullptr || bad < least) best = &liked, least = bad;
  }
  return best->split;
}

// What an H200 liked of int8, fp8 and int4. Their numbers are widened on the way, so a multiprocessor with more tiles than
// others is late even where the memory is not: tiles are low, unless they are many or come out unevenly.
GemmSplit eight_bit_split(const GemmProblem& p, const DeviceInfo& d) {
  const int64_t rows = p.weight_rows(), blocks = 2 * d.multiprocessors, tiles = ceil_div(rows, 32);
  if (p.m > 8) {
    if (2 * tiles <= blocks) return {1, 32, 0, 0};
    if (p.m <= 16) return {2, 64, 0, 1};
    if (tiles <= blocks) return {1, 64, 0, 1};
    return 2 * ceil_div(rows, 128) <= blocks ? GemmSplit{2, 128, 0, 0} : GemmSplit{1, 128, 0, 1};
  }
  if (2 * tiles <= blocks && p.k > 8192) return {2, 32, 0, 1};
  if (tiles > 3 * blocks) return {1, 128, 0, 1};
  if (tiles > blocks && 2 * tiles <= 3 * blocks) return {1, 64, 0, 1};
  return {1, 32, 0, 1};
}
GemmSplit int4_split(const GemmProblem& p, const DeviceInfo& d) {
  const int64_t tiles = ceil_div(p.weight_rows(), 32), blocks = 2 * d.multiprocessors;
  if (p.m > 16) {
    if (2 * tiles <= blocks) return {1, 32, 0, 0};
    return tiles <= blocks ? GemmSplit{2, 64, 12, 0} : GemmSplit{1, 64, 0, 1};
  }
  if (2 * tiles <= blocks) return {2, 32, 0, p.k > 12288 ? 1 : 0};
  if (tiles > 3 * blocks) return {1, 128, 0, 1};
  if (p.m > 8 && tiles > blocks) return {2, 32, 0, 1};
  if (tiles > blocks && 2 * tiles <= 3 * blocks) return {1, 64, 0, 1};
  return {1, 32, 0, 1};
}

GemmSplit split(const GemmProblem& p, const DeviceInfo& d) {
  GemmSplit best;
  if (is_quantised(p)) {
    best = p.blocks() > 0 ? int4_split(p, d) : eight_bit_split(p, d);
  } else {
    best = p.m <= 8 ? best_liked(p, d, kFew) : p.m <= 16 ? best_liked(p, d, kSome) : best_liked(p, d, kMany);
  }
  if (d.compute_capability < 90) best.pieces = 1;
  return best;
}

void splits(const GemmProblem& p, const DeviceInfo& d, std::vector<GemmSplit>* out) {
  for (int rows : {16, 32, 64, 128}) {
    if (is_quantised(p) ? rows == 16 : rows == 128 || (rows == 16 && p.m > 16)) continue;
    // Four blocks share a tile's K where tiles are few.
    const bool few = 2 * ceil_div(p.weight_rows(), rows) <= d.multiprocessors;
    for (int pieces : {1, 2, 4}) {
      if (pieces > 1 && (d.compute_capability < 90 || (pieces == 4 && !few))) continue;
      for (int algorithm : {1, 0}) out->push_back({pieces, rows, 0, algorithm});
    }
  }
  out->push_back({2, 64, 12, 0});
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

FlatLaunch launch_of(const GemmProblem& p) {
  const bool half = p.dtype == DType::f16;
  switch (p.weight_format) {
    case WeightFormat::int8: return half ? kFlatHalfInt8 : kFlatBf16Int8;
    case WeightFormat::fp8: return half ? kFlatHalfFp8 : kFlatBf16Fp8;
    case WeightFormat::int4: return half ? kFlatHalfInt4 : kFlatBf16Int4;
    default: return half ? kFlatHalfSame : kFlatBf16Same;
  }
}

Status run(const GemmParams& given, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  GemmParams params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &params));
  return launch_of(params.problem)(params, split, device, stream);
}

}  // namespace

extern const GemmVariant kCudaFlatMma;
const GemmVariant kCudaFlatMma = {"cuda_flat_mma",
                                  Backend::cuda,
                                  GemmKind::flat,
                                  "any M and format of weights on tensor cores, tokens padded to 8, ring of stages, K split in clusters",
                                  supports,
                                  split,
                                  workspace_bytes,
                                  run,
                                  splits};

}  // namespace fdpp
