// Decode attention: few query rows per KV head, a long context. Blocks share out the context of a row, warps share out
// the keys of a block, and each warp streams its own tiles through its own ring of shared memory without waiting for
// others. The rotary embedding and the append of the new tokens happen in the same launch.
#include <algorithm>

#include "kernels/attention/cuda/flash_tile.cuh"
#include "kernels/attention/cuda/launch.h"

namespace fdpp {
namespace {

constexpr int kTileKeys = 16;
constexpr int kMaxSplits = 64;
constexpr int kMinKeysPerSplit = 128;
constexpr int kCombineThreads = 128;

template <int D>
struct Shape {
  static constexpr int kWarps = D <= 128 ? 4 : 2;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTile = kTileKeys * D;  // elements
  static constexpr int kBlockKeys = kWarps * kTileKeys;
  // Two blocks fit into the shared memory of sm_80 and later, one into that of sm_86 and sm_89.
  static constexpr int kRingBytes = 72 * 1024;
  static constexpr int kStages = std::min(4, kRingBytes / (kWarps * 2 * kTile * 2));
  static constexpr int kSharedBytes = (kWarpRows * D + kWarps * kStages * 2 * kTile) * 2;
  // Rows of partial sums lie 8 floats further apart, in other banks.
  static constexpr int kSumStride = D + 8;
  static_assert(kStages >= 2, "copies run while the warp computes");
  static_assert(kWarps * kWarpRows * (kSumStride + 2) * 4 <= kSharedBytes - kWarpRows * D * 2,
                "the warps' sums take the place of the ring");
};

// Keys begin .. end - 1, for this split of `active` ones that have keys at all.
struct SplitRange {
  int begin, end;
  int active;
};

// The tokens before the new ones are dealt out in equal pieces; the new ones go to the last piece, whose block appends
// them, so that no block reads what another one writes.
template <typename T>
__device__ SplitRange split_range(const AttentionArgs<T>& args, const CacheSpan& span, int num_splits, int split,
                                  int granule) {
  const int begin = args.window > 0 ? max(span.first - args.window + 1, 0) : 0;
  const int past = span.first - begin;
  const int piece = max((past + num_splits * granule - 1) / (num_splits * granule), 1) * granule;
  const int active = max((past + piece - 1) / piece, 1);
  const bool last = split == active - 1;
  return {begin + split * piece, last ? span.length() : begin + (split + 1) * piece, active};
}

// What blocks leave for the combining kernel, per KV head of the batch and split: the sums of `rows` rows, not divided.
struct Partials {
  float* sums;   // [B * Hkv, splits, rows, D]
  float2* norms; // [B * Hkv, splits, rows]: m and l
  int rows, num_splits;

  __device__ int64_t index(int head_of_batch, int split, int row) const {
    return (static_cast<int64_t>(head_of_batch) * num_splits + split) * rows + row;
  }
};

__device__ __forceinline__ void add_scaled(float4& sum, const float4& part, float weight) {
  sum.x += part.x * weight;
  sum.y += part.y * weight;
  sum.z += part.z * weight;
  sum.w += part.w * weight;
}

template <typename T>
__device__ __forceinline__ uint2 pack4(const float4& sum, float factor) {
  return make_uint2(pack2<T>(sum.x * factor, sum.y * factor), pack2<T>(sum.z * factor, sum.w * factor));
}

template <typename T, int D>
__global__ void __launch_bounds__(Shape<D>::kThreads)
    split_kv_kernel(const __grid_constant__ AttentionArgs<T> args, const Partials partials) {
  using S = Shape<D>;
  extern __shared__ __align__(128) unsigned char shared[];
  T* const query_tile = reinterpret_cast<T*>(shared);
  T* const rings = query_tile + kWarpRows * D;

  const int split = blockIdx.x, kv_head = blockIdx.y, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const CacheSpan span = locate(args, batch);
  if (!span.valid) {
    if (split != 0) return;
    if (threadIdx.x == 0) report_bad_length(args);
    fill_output(args, batch, kv_head, 0, partials.rows, NAN);
    return;
  }
  const SplitRange range = split_range(args, span, partials.num_splits, split, S::kBlockKeys);
  if (split >= range.active) return;

  // This warp's tiles are number warp, warp + kWarps, ... of the range. Copies are committed in the order K0 V0 K1 V1
  // ..., empty ones included, so that "all but the newest 2 * kStages - 1" always names the tile wanted next.
  T* const key_ring = rings + warp * S::kStages * 2 * S::kTile;
  T* const value_ring = key_ring + S::kStages * S::kTile;
  const T* const keys = args.key.at(batch, kv_head, range.begin);
  const T* const values = args.value.at(batch, kv_head, range.begin);
  const auto copy = [&](T* ring, const T* source, int stride, int step, int stage) {
    const int first = (warp + step * S::kWarps) * kTileKeys;
    const int valid = range.end - range.begin - first;
    if (valid > 0)
      copy_tile_async<T, D, kTileKeys, 32>(ring + stage * S::kTile, source + int64_t{first} * stride, stride, valid,
                                           args.head_size, lane);
    cp_async_commit();
  };
  const auto copy_keys = [&](int step, int stage) { copy(key_ring, keys, args.key.token_stride, step, stage); };
  const auto copy_values = [&](int step, int stage) {
    copy(value_ring, values, args.value.token_stride, step, stage);
  };
  const auto fill_ring = [&] {
#pragma unroll
    for (int stage = 0; stage < S::kStages; ++stage) {
      copy_keys(stage, stage);
      copy_values(stage, stage);
    }
  };

  const bool appends = split == range.active - 1;
  if (!appends) fill_ring();
  load_query_tile<T, D, kWarpRows>(query_tile, args, span, batch, kv_head, 0);
  if (appends) {
    const int units = args.head_size / 4;
    for (int i = threadIdx.x; i < span.tokens * units; i += S::kThreads)
      append4(args, span, batch, kv_head, i / units, i % units * 4);
  }
  __syncthreads();
  if (appends) fill_ring();

  WarpAttention<T, D, kTileKeys> attention(query_tile);
  const WarpMask mask = make_mask(args, span, 0, range.end);
  int stage = 0;
  for (int step = 0;; ++step) {
    const int first_key = range.begin + (warp + step * S::kWarps) * kTileKeys;
    if (first_key >= range.end) break;
    float s[kTileKeys / 8][4];
    cp_async_wait<2 * S::kStages - 1>();
    __syncwarp();
    attention.score(key_ring + stage * S::kTile, s);
    __syncwarp();
    copy_keys(step + S::kStages, stage);
    attention.weigh(s, first_key, mask, args.softmax);
    cp_async_wait<2 * S::kStages - 1>();
    __syncwarp();
    attention.add_values(s, value_ring + stage * S::kTile);
    __syncwarp();
    copy_values(step + S::kStages, stage);
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
  }
  attention.finish();

  // The warps' sums meet in the memory of the rings.
  cp_async_wait<0>();
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(rings);
  float2* const norms = reinterpret_cast<float2*>(sums + S::kWarps * kWarpRows * S::kSumStride);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane / 4 + 8 * i;
    if (row >= partials.rows) continue;
    float* to = sums + (warp * kWarpRows + row) * S::kSumStride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(attention.o[n][2 * i], attention.o[n][2 * i + 1]);
    if (lane % 4 == 0) norms[warp * kWarpRows + row] = make_float2(attention.m[i], attention.l[i]);
  }
  __syncthreads();

  const int units = args.head_size / 4;
  for (int i = threadIdx.x; i < partials.rows * units; i += S::kThreads) {
    const int row = i / units, column = i % units * 4;
    float m = -INFINITY, l = 0;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) m = fmaxf(m, norms[w * kWarpRows + row].x);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) {
      const float2 norm = norms[w * kWarpRows + row];
      const float weight = norm.x == -INFINITY ? 0 : exp2_approx(norm.x - m);
      const float4 part = *reinterpret_cast<const float4*>(sums + (w * kWarpRows + row) * S::kSumStride + column);
      l += norm.y * weight;
      add_scaled(sum, part, weight);
    }
    if (partials.num_splits > 1) {
      const int64_t index = partials.index(blockIdx.z * gridDim.y + kv_head, split, row);
      *reinterpret_cast<float4*>(partials.sums + index * args.head_size + column) = sum;
      if (column == 0) partials.norms[index] = make_float2(m, l);
    } else {
      const bool padding = row / args.group >= span.tokens;
      const float factor = output_factor(m, l, sink_log2(args, kv_head, row));
      const uint2 result = pack4<T>(sum, factor);
      *reinterpret_cast<uint2*>(output_row(args, batch, kv_head, row) + column) = padding ? make_uint2(0, 0) : result;
    }
  }
}

// One block per query row: the splits' sums, brought to one maximum, added and divided.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const __grid_constant__ AttentionArgs<T> args, const Partials partials, int granule) {
  __shared__ float weights[kMaxSplits];
  __shared__ float4 sums[kCombineThreads];
  __shared__ float shared_factor;
  const int row = blockIdx.x, kv_head = blockIdx.y, batch = blockIdx.z;
  const CacheSpan span = locate(args, batch);
  if (!span.valid) return;  // filled already
  T* const output = output_row(args, batch, kv_head, row);
  const int units = args.head_size / 4;
  const int unit = threadIdx.x % units, lane_of_splits = threadIdx.x / units;
  if (row / args.group >= span.tokens) {
    if (lane_of_splits == 0) *reinterpret_cast<uint2*>(output + unit * 4) = make_uint2(0, 0);
    return;
  }
  const int active = split_range(args, span, partials.num_splits, 0, granule).active;
  const int64_t first = partials.index(batch * gridDim.y + kv_head, 0, row);

  if (threadIdx.x < 32) {
    float2 norms[kMaxSplits / 32];
    float m = -INFINITY, l = 0;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      const int split = threadIdx.x + i * 32;
      norms[i] = split < active ? partials.norms[first + static_cast<int64_t>(split) * partials.rows]
                                : make_float2(-INFINITY, 0);
      m = fmaxf(m, norms[i].x);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, distance));
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      const float weight = norms[i].x == -INFINITY ? 0 : exp2_approx(norms[i].x - m);
      weights[threadIdx.x + i * 32] = weight;
      l += norms[i].y * weight;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) l += __shfl_xor_sync(~0u, l, distance);
    if (threadIdx.x == 0) shared_factor = output_factor(m, l, sink_log2(args, kv_head, row));
  }
  __syncthreads();

  // Threads in groups of `units`; each group takes every so-manieth split.
  const int groups = kCombineThreads / units;
  float4 sum = make_float4(0, 0, 0, 0);
  if (lane_of_splits < groups) {
    for (int split = lane_of_splits; split < active; split += groups) {
      const float4 part = *reinterpret_cast<const float4*>(
          partials.sums + (first + static_cast<int64_t>(split) * partials.rows) * args.head_size + unit * 4);
      add_scaled(sum, part, weights[split]);
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane_of_splits != 0) return;
  for (int group = 1; group < groups; ++group) add_scaled(sum, sums[group * units + unit], 1);
  *reinterpret_cast<uint2*>(output + unit * 4) = pack4<T>(sum, shared_factor);
}

bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (!takes_attention(p, device, why)) return false;
  if (p.query_length * p.group() <= kWarpRows) return true;
  *why = "takes at most " + std::to_string(kWarpRows) +
         " query rows (new tokens times heads of a group) per KV head, not " +
         std::to_string(p.query_length * p.group());
  return false;
}

int num_splits(const AttentionProblem& p, const DeviceInfo& device) {
  const int64_t context = p.window > 0 ? std::min(p.total_length, p.window + p.query_length) : p.total_length;
  const int64_t heads = std::max<int64_t>(p.batch * p.kv_heads, 1);
  // One block a multiprocessor: on an H200 a second one gains nothing at batch 1 and costs a fifth at batch 8.
  const int64_t to_fill = (device.multiprocessors + heads - 1) / heads;
  const int64_t most = std::min<int64_t>((context + kMinKeysPerSplit - 1) / kMinKeysPerSplit, kMaxSplits);
  return static_cast<int>(std::max<int64_t>(std::min(to_fill, most), 1));
}

int64_t partials_count(const AttentionProblem& p, int num_splits) {
  return p.batch * p.q_heads * p.query_length * num_splits;
}

size_t workspace_bytes(const AttentionProblem& p, int num_splits) {
  if (num_splits == 1) return 0;
  return partials_count(p, num_splits) * (p.head_size * sizeof(float) + sizeof(float2));
}

template <typename T, int D>
Status launch(const AttentionArgs<T>& args, const AttentionProblem& p, const Partials& partials, cudaStream_t stream) {
  using S = Shape<D>;
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(&split_kv_kernel<T, D>), S::kSharedBytes));
  const dim3 grid(partials.num_splits, p.kv_heads, p.batch);
  split_kv_kernel<T, D><<<grid, S::kThreads, S::kSharedBytes, stream>>>(args, partials);
  FDPP_RETURN_IF_ERROR(check_launch("split_kv_kernel"));
  if (partials.num_splits == 1) return {};
  const dim3 rows(partials.rows, p.kv_heads, p.batch);
  combine_kernel<T><<<rows, kCombineThreads, 0, stream>>>(args, partials, S::kBlockKeys);
  return check_launch("combine_kernel");
}

Status run(const AttentionParams& params, int num_splits, void* workspace, const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, stream));
  Partials partials;
  partials.rows = static_cast<int>(p.query_length * p.group());
  partials.num_splits = num_splits;
  partials.sums = static_cast<float*>(workspace);
  partials.norms = reinterpret_cast<float2*>(partials.sums + partials_count(p, num_splits) * p.head_size);
  return with_types(p, [&](auto element, auto size) {
    using T = typename decltype(element)::type;
    return launch<T, decltype(size)::value>(make_args<T>(params, context), p, partials, stream);
  });
}

}  // namespace

extern const AttentionVariant kCudaSplitKvAttention;
const AttentionVariant kCudaSplitKvAttention = {
    "cuda_split_kv",
    Backend::cuda,
    "decode: the context split over blocks and warps, rotary embedding and append in the same launch, tensor cores",
    supports,
    num_splits,
    workspace_bytes,
    run,
};

}  // namespace fdpp
