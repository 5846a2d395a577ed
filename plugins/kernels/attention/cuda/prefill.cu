// Attention of any number of new tokens: one launch rotates and appends them, a second one computes 64 query rows of a
// KV head per block (16 per warp), streaming the keys those rows may see.
#include "kernels/attention/cuda/flash_tile.cuh"
#include "kernels/attention/cuda/launch.h"

namespace fdpp {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kBlockRows = kWarps * kWarpRows;
constexpr int kStages = 2;
constexpr int kAppendThreads = 128;

template <int D>
struct Shape {
  static constexpr int kKeys = D <= 128 ? 64 : 32;
  static constexpr int kTile = kKeys * D;  // elements
  static constexpr int kSharedBytes = (kBlockRows * D + kStages * 2 * kTile) * 2;
  static_assert(kSharedBytes <= 99 * 1024, "fits the shared memory of sm_86 and sm_89");
};

template <typename T>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(const __grid_constant__ AttentionArgs<T> args) {
  const int units = args.head_size / 4;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kAppendThreads + threadIdx.x;
  const CacheSpan span = locate(args, blockIdx.z);
  if (index < static_cast<int64_t>(span.tokens) * units)
    append4(args, span, blockIdx.z, blockIdx.y, static_cast<int>(index / units), static_cast<int>(index % units) * 4);
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const __grid_constant__ AttentionArgs<T> args) {
  using S = Shape<D>;
  extern __shared__ __align__(128) unsigned char shared[];
  T* const query_tile = reinterpret_cast<T*>(shared);
  T* const ring = query_tile + kBlockRows * D;

  // Later rows see more keys: they start first.
  const int first_row = (gridDim.x - 1 - blockIdx.x) * kBlockRows;
  const int kv_head = blockIdx.y, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = min(args.query_length * args.group - first_row, kBlockRows);
  const CacheSpan span = locate(args, batch);
  if (!span.valid) {
    if (threadIdx.x == 0) report_bad_length(args);
    fill_output(args, batch, kv_head, first_row, rows, NAN);
    return;
  }
  const int first_token = first_row / args.group;
  const int last_token = min((first_row + rows - 1) / args.group, span.tokens - 1);
  if (first_token > last_token) {
    fill_output(args, batch, kv_head, first_row, rows, 0);
    return;
  }
  const int begin = args.window > 0 ? max(span.first + first_token - args.window + 1, 0) : 0;
  const int end = span.first + last_token + 1;

  const auto copy = [&](int first_key, int stage) {
    T* const tile = ring + stage * 2 * S::kTile;
    const int valid = end - first_key;
    copy_tile_async<T, D, S::kKeys, kThreads>(tile, args.key.at(batch, kv_head, first_key), args.key.token_stride,
                                              valid, args.head_size, threadIdx.x);
    copy_tile_async<T, D, S::kKeys, kThreads>(tile + S::kTile, args.value.at(batch, kv_head, first_key),
                                              args.value.token_stride, valid, args.head_size, threadIdx.x);
    cp_async_commit();
  };

  copy(begin, 0);
  load_query_tile<T, D, kBlockRows>(query_tile, args, span, batch, kv_head, first_row);
  __syncthreads();
  T* const warp_rows = query_tile + warp * kWarpRows * D;
  WarpAttention<T, D, S::kKeys> attention(warp_rows);
  const WarpMask mask = make_mask(args, span, first_row + warp * kWarpRows, end);
  int stage = 0;
  for (int first_key = begin; first_key < end; first_key += S::kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is here, and every warp is done with the other stage
    if (first_key + S::kKeys < end) copy(first_key + S::kKeys, stage ^ 1);
    const T* const tile = ring + stage * 2 * S::kTile;
    float s[S::kKeys / 8][4];
    attention.score(tile, s);
    attention.weigh(s, first_key, mask, args.softmax);
    attention.add_values(s, tile + S::kTile);
    stage ^= 1;
  }
  attention.finish();

  // Each warp lays its rows out in the place of its query, from where they leave 16 bytes at a time.
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int local = lane / 4 + 8 * i;
    const int row = first_row + warp * kWarpRows + local;
    const bool real = row / args.group < span.tokens;
    const float factor = real ? output_factor(attention.m[i], attention.l[i], sink_log2(args, kv_head, row)) : 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const uint32_t pair = pack2<T>(attention.o[n][2 * i] * factor, attention.o[n][2 * i + 1] * factor);
      *reinterpret_cast<uint32_t*>(warp_rows + TileLayout<D>::offset(local, n) + lane % 4 * 2) = real ? pair : 0;
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

int num_splits(const AttentionProblem&, const DeviceInfo&) { return 1; }
size_t workspace_bytes(const AttentionProblem&, int) { return 0; }

template <typename T, int D>
Status launch(const AttentionArgs<T>& args, const AttentionProblem& p, cudaStream_t stream) {
  const int64_t append_items = p.query_length * (p.head_size / 4);
  const dim3 append_grid((append_items + kAppendThreads - 1) / kAppendThreads, p.kv_heads, p.batch);
  append_kernel<T><<<append_grid, kAppendThreads, 0, stream>>>(args);
  FDPP_RETURN_IF_ERROR(check_launch("append_kernel"));

  using S = Shape<D>;
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(&prefill_kernel<T, D>), S::kSharedBytes));
  const int64_t rows = p.query_length * p.group();
  const dim3 grid((rows + kBlockRows - 1) / kBlockRows, p.kv_heads, p.batch);
  prefill_kernel<T, D><<<grid, kThreads, S::kSharedBytes, stream>>>(args);
  return check_launch("prefill_kernel");
}

Status run(const AttentionParams& params, int, void*, const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, stream));
  return with_types(p, [&](auto element, auto size) {
    using T = typename decltype(element)::type;
    return launch<T, decltype(size)::value>(make_args<T>(params, context), p, stream);
  });
}

}  // namespace

extern const AttentionVariant kCudaPrefillAttention;
const AttentionVariant kCudaPrefillAttention = {
    "cuda_prefill",
    Backend::cuda,
    "any number of new tokens: 64 query rows a block, tiles of keys through shared memory, tensor cores",
    takes_attention,
    num_splits,
    workspace_bytes,
    run,
};

}  // namespace fdpp
