// Attention of any number of new tokens from sm_80 on: one launch prepares and appends them, a second one computes 64
// query rows of a KV head per block (16 per warp), streaming the keys those rows may see.
#include "kernels/attention/cuda/append.cuh"
#include "kernels/attention/cuda/flash_tile.cuh"
#include "kernels/attention/cuda/launch.h"

namespace fdpp {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlockRows = kWarps * kWarpRows;

// Shared memory: the query, a ring of key and value tiles, and for an 8-bit cache (whose ring is one stage) the next
// tiles as they lie in the cache.
template <typename C, int D>
struct Shape {
  static constexpr bool kWidens = sizeof(C) == 1;
  static constexpr int kKeys = D <= 128 ? 64 : 32;
  static constexpr int kTile = kKeys * D;  // elements
  static constexpr int kStages = kWidens ? 1 : 2;
  static constexpr int kSharedBytes = (kBlockRows * D + kStages * 2 * kTile) * 2 + (kWidens ? 2 * kTile : 0);
  static_assert(kSharedBytes + kBlockRows * 4 <= 99 * 1024, "fits the shared memory of sm_86 and sm_89");
};

template <typename T, typename C, int D>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const __grid_constant__ AttentionArgs<T, C> args) {
  using S = Shape<C, D>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float row_factors[kBlockRows];
  T* const query_tile = reinterpret_cast<T*>(shared);
  T* const ring = query_tile + kBlockRows * D;
  C* const codes = reinterpret_cast<C*>(ring + S::kStages * 2 * S::kTile);

  // Later rows see more keys: they start first.
  const int first_row = (gridDim.x - 1 - blockIdx.x) * kBlockRows;
  const int kv_head = blockIdx.y, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = min(args.query_length * args.group - first_row, kBlockRows);
  const CacheSpan span = locate(args, batch);
  if (!span.valid()) {
    if (threadIdx.x == 0) report_fault(args.fault, kBadSeqlens);
    fill_output(args, batch, kv_head, first_row, rows, NAN, threadIdx.x, kThreads);
    return;
  }
  const int first_token = first_row / args.group;
  const int last_token = min((first_row + rows - 1) / args.group, span.tokens - 1);
  if (first_token > last_token) {
    fill_output(args, batch, kv_head, first_row, rows, 0, threadIdx.x, kThreads);
    return;
  }
  const int begin = args.window > 0 ? max(span.first + first_token - args.window + 1, 0) : 0;
  const int end = span.first + last_token + 1;

  const auto copy = [&](int first_key, int stage) {
    C* to;
    if constexpr (S::kWidens) {
      to = codes;
    } else {
      to = ring + stage * 2 * S::kTile;
    }
    const int valid = end - first_key;
    copy_tile_async<D, S::kKeys, kThreads>(to, args.key.at(batch, kv_head, first_key), args.key.token_stride, valid,
                                           args.head_size, threadIdx.x);
    copy_tile_async<D, S::kKeys, kThreads>(to + S::kTile, args.value.at(batch, kv_head, first_key),
                                           args.value.token_stride, valid, args.head_size, threadIdx.x);
    cp_async_commit();
  };

  copy(begin, 0);
  const float key_scale = key_unit(args, kv_head);
  load_query_tile<D, kBlockRows>(query_tile, row_factors, args, span, batch, kv_head, first_row, key_scale);
  __syncthreads();
  T* const warp_rows = query_tile + warp * kWarpRows * D;
  const int lane_row = first_row + warp * kWarpRows + lane / 4;
  const int heads[2] = {kv_head * args.group + lane_row % args.group,
                        kv_head * args.group + (lane_row + 8) % args.group};
  const bool real[2] = {lane_row / args.group < span.tokens, (lane_row + 8) / args.group < span.tokens};
  RowBias<T> bias = {nullptr, nullptr};
  if (args.bias.data != nullptr) {
    for (int i = 0; i < 2; ++i)
      if (real[i]) bias.row[i] = args.bias.at(batch, heads[i], (lane_row + 8 * i) / args.group);
  }
  WarpAttention<T, D, S::kKeys> attention(warp_rows, args.softmax, heads, key_scale);
  const WarpMask mask = make_mask(args, span, first_row + warp * kWarpRows, end);
  int stage = 0;
  for (int first_key = begin; first_key < end; first_key += S::kKeys) {
    T* const tile = ring + stage * 2 * S::kTile;
    cp_async_wait<0>();
    __syncthreads();  // the tile is here (or its codes), and every warp is done with the previous one
    if constexpr (S::kWidens) {
      widen_tile<T, D, S::kKeys, kThreads>(tile, codes, threadIdx.x);
      widen_tile<T, D, S::kKeys, kThreads>(tile + S::kTile, codes + S::kTile, threadIdx.x);
    }
    const int next_stage = stage + 1 == S::kStages ? 0 : stage + 1;
    if (first_key + S::kKeys < end) copy(first_key + S::kKeys, next_stage);
    if constexpr (S::kWidens) __syncthreads();
    float s[S::kKeys / 8][4];
    attention.score(tile, s);
    attention.weigh(s, first_key, mask, bias, args.softmax);
    attention.add_values(s, tile + S::kTile);
    stage = next_stage;
  }
  attention.finish();
  count_out_of_range(args, lane % 4 == 0 && real[0] && attention.reference[0].has_left(attention.phi[0]),
                     lane % 4 == 0 && real[1] && attention.reference[1].has_left(attention.phi[1]));

  // Each warp lays its rows out in the place of its query, from where they leave 16 bytes at a time.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int local = lane / 4 + 8 * i;
    const float sink = sink_log2(args, kv_head, lane_row + 8 * i);
    const float factor = real[i] ? output_factor(attention.reference[i].m, attention.l[i], sink) : 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      float2 scale = make_float2(factor, factor);
      if constexpr (S::kWidens) {
        if (column < args.head_size) {
          scale.x *= args.value_scale.at(kv_head, args.head_size, column);
          scale.y *= args.value_scale.at(kv_head, args.head_size, column + 1);
        }
      }
      const uint32_t pair = pack2<T>(attention.o[n][2 * i] * scale.x, attention.o[n][2 * i + 1] * scale.y);
      *reinterpret_cast<uint32_t*>(warp_rows + TileLayout<D>::offset(local, n) + lane % 4 * 2) = real[i] ? pair : 0;
    }
  }
  __syncwarp();
  const int chunks = args.head_size / 8;
  for (int i = lane; i < kWarpRows * chunks; i += 32) {
    const int local = i / chunks, chunk = i % chunks;
    if (warp * kWarpRows + local >= rows) break;
    T* const to = output_row(args, batch, kv_head, first_row + warp * kWarpRows + local) + chunk * 8;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(warp_rows + TileLayout<D>::offset(local, chunk));
  }
}

AttentionSplit split(const AttentionProblem&, const DeviceInfo&) { return {}; }
size_t workspace_bytes(const AttentionProblem&, const AttentionSplit&) { return 0; }

template <int D, typename T, typename C>
Status launch(const AttentionArgs<T, C>& args, const AttentionProblem& p, cudaStream_t stream) {
  using S = Shape<C, D>;
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(&prefill_kernel<T, C, D>), S::kSharedBytes));
  const int64_t rows = p.query_length * p.group();
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kBlockRows)), static_cast<unsigned>(p.kv_heads),
                  static_cast<unsigned>(p.batch));
  prefill_kernel<T, C, D><<<grid, kThreads, S::kSharedBytes, stream>>>(args);
  return check_launch("prefill_kernel");
}

Status run(const AttentionParams& params, const AttentionSplit&, void*, const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, stream));
  return with_types(p, [&](auto element, auto cache_element) -> Status {
    using T = typename decltype(element)::type;
    using C = typename decltype(cache_element)::type;
    const auto args = make_args<T, C>(params, context);
    FDPP_RETURN_IF_ERROR(launch_append(args, p, true, stream));
    if (p.head_size <= 64) return launch<64>(args, p, stream);
    if constexpr (sizeof(C) == 2) {
      if (p.head_size <= 96) return launch<96>(args, p, stream);
    }
    if (p.head_size <= 128) return launch<128>(args, p, stream);
    if constexpr (sizeof(C) == 2) {
      if (p.head_size <= 192) return launch<192>(args, p, stream);
    }
    return launch<256>(args, p, stream);
  });
}

}  // namespace

extern const AttentionVariant kCudaPrefillAttention;
const AttentionVariant kCudaPrefillAttention = {
    "cuda_prefill",
    Backend::cuda,
    "any number of new tokens: 64 query rows a block, tiles of keys through shared memory, tensor cores",
    takes_attention,
    split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
