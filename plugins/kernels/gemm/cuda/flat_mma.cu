// Few rows of A on tensor cores with the operands swapped: rows of B fill the 16-wide side of m16n8k16, tokens (rows of
// A) the 8-wide one, so that M is padded to 8 only. Slices of K pass through a ring of shared-memory stages that cp.async
// keeps full. Where N alone gives too few blocks, K is split: on sm_90 among the blocks of a cluster, which add up their
// sums through distributed shared memory, elsewhere into float32 parts that a second kernel adds.
#include <algorithm>
#include <limits>

#include "kernels/common/ceil_div.h"
#include "kernels/common/pipeline.cuh"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kSliceK = 64;                            // elements of K in a stage
constexpr int kVector = 8;                             // elements in 16 bytes
constexpr int kRowBytes = kSliceK * 2;                 // of a row in a stage
constexpr int kRowVectors = kSliceK / kVector;         // 8, the period of the swizzle
constexpr int kRowsPerPass = kThreads / kRowVectors;   // rows that the block copies at once, 16 bytes a thread
constexpr int kMaxTokens = 64;                         // of a block
constexpr int kMaxSplits = 16;
constexpr int kMaxCluster = 8;
constexpr int kPrefetchBytes = 2048;  // of a row, into the L2 before the predecessor has ended
constexpr int kAddThreads = 256;

// A block's shape by the number of its 8-token tiles. From 4 tiles on a warp takes 32 rows of B, not 16: every fragment
// of A then serves two products and shared memory keeps up. Stages are as many as fit the 99 KiB of the smallest GPUs.
__host__ __device__ constexpr int row_tiles(int token_tiles) { return token_tiles >= 4 ? 2 : 1; }
__host__ __device__ constexpr int block_rows(int token_tiles) { return kWarps * 16 * row_tiles(token_tiles); }
__host__ __device__ constexpr int stages(int token_tiles) { return token_tiles >= 4 ? 4 : 6; }
__host__ __device__ constexpr int stage_bytes(int token_tiles) {
  return (block_rows(token_tiles) + 8 * token_tiles) * kRowBytes;
}
constexpr int shared_bytes(int token_tiles) { return stages(token_tiles) * stage_bytes(token_tiles); }
static_assert(shared_bytes(3) <= 99 * 1024 && shared_bytes(8) <= 99 * 1024, "too large for compute capability 8.6");

// Where the 16 bytes `vector` of `row` lie in a stage: XOR with the row makes both the copies in and ldmatrix's reads
// of 8 rows at one `vector` hit all banks once.
__device__ __forceinline__ int swizzled(int row, int vector) {
  return row * kRowBytes + ((vector ^ (row % kRowVectors)) * 16);
}

// 16 bytes into shared memory: the first `left` elements of `src`, then zeros. Rows that start at 16 bytes hold a
// multiple of 8 elements, so there a vector is taken whole or not at all.
template <bool kAligned, bool kStreamed>
__device__ __forceinline__ void copy_vector(char* dst, const unsigned short* src, int left, uint64_t policy) {
  if constexpr (kAligned && kStreamed) {
    cp_async_streamed_16(dst, src, left > 0, policy);
  } else if constexpr (kAligned) {
    cp_async_16(dst, src, left > 0);
  } else {
    uint32_t packed[kVector / 2];
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      const uint32_t low = 2 * i < left ? src[2 * i] : 0;
      const uint32_t high = 2 * i + 1 < left ? src[2 * i + 1] : 0;
      packed[i] = low | high << 16;
    }
    *reinterpret_cast<uint4*>(dst) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
}

// A thread's share of `kRows` rows: 16 bytes of every kRowsPerPass-th row from `row` on. `src` points into its first
// row, `left` elements before that row's end; rows from `rows` on are zeros. A pass moves by a multiple of the swizzle's
// period, so `dst`, a swizzled address, moves straight on.
template <int kRows, bool kAligned, bool kStreamed>
__device__ __forceinline__ void copy_rows(char* dst, const unsigned short* src, int row, int rows, int left, int64_t k,
                                          uint64_t policy) {
#pragma unroll
  for (int pass = 0; pass * kRowsPerPass < kRows; ++pass) {
    const int at = row + pass * kRowsPerPass;
    if (at < kRows)
      copy_vector<kAligned, kStreamed>(dst + pass * kRowsPerPass * kRowBytes, src, at < rows ? left : 0, policy);
    src += kRowsPerPass * k;
  }
}

// Blocks are numbered with the token block fastest, then the split, then the tile of N: blocks that read the same rows
// of B run close together. `parts` [splits, M, N] is null where splits is 1 and where the splits are a cluster.
template <typename T, int kTokenTiles, bool kAligned>
__global__ void __launch_bounds__(kThreads, row_tiles(kTokenTiles) == 1 ? 4 : 2)
    flat_kernel(const T* __restrict__ a, const T* __restrict__ b, Epilogue<T> out, float* __restrict__ parts, int64_t m,
                int n, int k, int splits, int token_blocks) {
  constexpr int kRowTiles = row_tiles(kTokenTiles);
  constexpr int kRows = block_rows(kTokenTiles);
  constexpr int kTokens = 8 * kTokenTiles;
  constexpr int kStages = stages(kTokenTiles);
  extern __shared__ __align__(128) char shared[];

  const int token_block = blockIdx.x % token_blocks;
  const int split = blockIdx.x / token_blocks % splits;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / token_blocks / splits) * kRows;
  const int64_t first_token = static_cast<int64_t>(token_block) * kTokens;
  const int64_t slices = (k + kSliceK - 1) / kSliceK;
  const int begin = static_cast<int>(slices * split / splits);
  const int end = static_cast<int>(slices * (split + 1) / splits);
  const uint64_t policy = evict_first_policy();

  const int copy_row = threadIdx.x / kRowVectors;
  const int copy_element = threadIdx.x % kRowVectors * kVector;
  const int copy_to = swizzled(copy_row, threadIdx.x % kRowVectors);
  const int rows_left = static_cast<int>(min(n - first_row, int64_t{kRows}));
  const int tokens_left = static_cast<int>(min(m - first_token, int64_t{kTokens}));
  const auto* b_row = reinterpret_cast<const unsigned short*>(b) + (first_row + copy_row) * k;
  const auto* a_row = reinterpret_cast<const unsigned short*>(a) + (first_token + copy_row) * k;
  const auto fill_weights = [&](int slice, int stage) {
    char* to = shared + stage * stage_bytes(kTokenTiles) + copy_to;
    const int at = slice * kSliceK + copy_element;
    copy_rows<kRows, kAligned, true>(to, b_row + at, copy_row, rows_left, k - at, k, policy);
  };
  const auto fill_tokens = [&](int slice, int stage) {
    char* to = shared + stage * stage_bytes(kTokenTiles) + kRows * kRowBytes + copy_to;
    const int at = slice * kSliceK + copy_element;
    copy_rows<kTokens, kAligned, false>(to, a_row + at, copy_row, tokens_left, k - at, k, policy);
  };

  // Nobody writes weights; A, the residual and what lies at Y may still be in use.
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s < end) fill_weights(begin + s, s);
  }
  if constexpr (kAligned) {
    const int from = (begin + kStages - 1) * kSliceK, to = min(min(end * kSliceK, k), from + kPrefetchBytes / 2);
    if (threadIdx.x < rows_left) prefetch_into_l2(b + (first_row + threadIdx.x) * k + from, (to - from) * 2);
  }
  wait_for_predecessor();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s < end) fill_tokens(begin + s, s);
    cp_async_commit();
  }

  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp_row = warp * 16 * kRowTiles;
  float acc[kRowTiles][kTokenTiles][4] = {};
  int stage = 0;
  for (int slice = begin; slice < end; ++slice) {
    cp_async_wait<kStages - 2>();
    // After this the slice is there for all, and all have left the stage that is filled next.
    __syncthreads();
    const int next = slice + kStages - 1;
    if (next < end) {
      const int free = stage == 0 ? kStages - 1 : stage - 1;
      fill_weights(next, free);
      fill_tokens(next, free);
    }
    cp_async_commit();

    const char* weights = shared + stage * stage_bytes(kTokenTiles);
    const char* tokens = weights + kRows * kRowBytes;
#pragma unroll
    for (int half = 0; half < kSliceK / 32; ++half) {  // 32 elements of K: two products deep
      uint32_t w[2][kRowTiles][4];
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          ldmatrix_x4(w[step][r],
                      weights + swizzled(warp_row + 16 * r + lane % 16, 4 * half + 2 * step + lane / 16));
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        uint32_t x[4];
        ldmatrix_x4(x, tokens + swizzled(8 * t + lane % 8, 4 * half + lane / 8));
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma_m16n8k16<T>(acc[r][t], w[0][r], x[0], x[1]);
          mma_m16n8k16<T>(acc[r][t], w[1][r], x[2], x[3]);
        }
      }
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  // Not sooner: blocks of the next launch would take the room that this one's have on some multiprocessors and leave
  // them unevenly spread.
  release_successor();
  const auto for_each_sum = [&](auto&& put) {  // put(token, row, sum), counted from the block's first
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          put(8 * t + 2 * (lane % 4) + i % 2, warp_row + 16 * r + lane / 4 + 8 * (i / 2), acc[r][t][i]);
  };
#if __CUDA_ARCH__ >= 900
  if (splits > 1 && parts == nullptr) {
    cp_async_wait<0>();
    __syncthreads();  // nobody reads the stages any more
    float* const sums = reinterpret_cast<float*>(shared);
    for_each_sum([&](int token, int row, float sum) { sums[token * kRows + row] = sum; });
    cluster_arrive();
    cluster_wait();
    const int count = tokens_left * kRows;
    for (int i = split * kThreads + threadIdx.x; i < count; i += splits * kThreads) {
      const int token = i / kRows, row = i % kRows;
      float sum = 0;
      for (int s = 0; s < splits; ++s) sum += load_remote(remote_address(sums + i, s));
      if (row < rows_left) out.store(first_token + token, first_row + row, sum);
    }
    cluster_arrive();  // a block's sums stay while others read them
    cluster_wait();
    return;
  }
#endif
  for_each_sum([&](int token, int row, float sum) {
    if (token >= tokens_left || row >= rows_left) return;
    if (parts != nullptr)
      parts[(split * m + first_token + token) * n + first_row + row] = sum;
    else
      out.store(first_token + token, first_row + row, sum);
  });
}

template <typename T>
__global__ void __launch_bounds__(kAddThreads)
    add_parts_kernel(const float* __restrict__ parts, Epilogue<T> out, int64_t m, int n, int splits) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= n) return;
  for (int64_t row = blockIdx.y; row < m; row += gridDim.y) {
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < splits; ++s) sum += parts[(s * m + row) * n + column];
    out.store(row, column, sum);
  }
}

struct Shape {
  int token_tiles;
  int64_t token_blocks;
  int64_t row_blocks;
};

// The least padding among the tile counts that are compiled; more than 64 tokens are cut into equal blocks.
Shape shape_of(const GemmProblem& p, bool aligned) {
  const int64_t m = std::max<int64_t>(p.m, 1);
  const int64_t cuts = (m + kMaxTokens - 1) / kMaxTokens;
  const int64_t tiles = ((m + cuts - 1) / cuts + 7) / 8;
  Shape shape;
  shape.token_tiles = 8;
  if (aligned) {
    for (int compiled : {6, 4, 3, 2, 1})
      if (tiles <= compiled) shape.token_tiles = compiled;
  } else if (tiles == 1) {
    shape.token_tiles = 1;
  }
  shape.token_blocks = (m + 8 * shape.token_tiles - 1) / (8 * shape.token_tiles);
  shape.row_blocks = (p.n + block_rows(shape.token_tiles) - 1) / block_rows(shape.token_tiles);
  return shape;
}

// Whether the splits of a tile are a cluster; `hopper`: of compute capability 9.0 or later.
bool clustered(const Shape& shape, int splits, bool hopper) {
  return hopper && splits > 1 && splits <= kMaxCluster && shape.token_blocks == 1;
}

template <typename T, int kTokenTiles, bool kAligned>
Status launch(const GemmParams& p, const Shape& shape, int splits, float* parts, bool hopper, cudaStream_t stream) {
  static SharedMemoryGrant grant;
  const auto kernel = flat_kernel<T, kTokenTiles, kAligned>;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel), shared_bytes(kTokenTiles)));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = splits;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.row_blocks * splits * shape.token_blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes(kTokenTiles);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = clustered(shape, splits, hopper) ? 2 : hopper ? 1 : 0;
  return check_gpu(
      cudaLaunchKernelEx(&config, kernel, static_cast<const T*>(p.a), static_cast<const T*>(p.b), Epilogue<T>(p), parts,
                         p.problem.m, static_cast<int>(p.problem.n), static_cast<int>(p.problem.k), splits,
                         static_cast<int>(shape.token_blocks)),
      "cuda_flat_mma");
}

template <typename T>
Status run_typed(const GemmParams& p, int splits, float* parts, cudaStream_t stream) {
  const bool aligned = rows_aligned_16(p.a, p.problem.k) && rows_aligned_16(p.b, p.problem.k);
  const Shape shape = shape_of(p.problem, aligned);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const bool hopper = device.compute_capability >= 90;
  if (clustered(shape, splits, hopper)) parts = nullptr;
  const auto run_kernel = [&]() -> Status {
    if (!aligned)
      return shape.token_tiles == 1 ? launch<T, 1, false>(p, shape, splits, parts, hopper, stream)
                                    : launch<T, 8, false>(p, shape, splits, parts, hopper, stream);
    switch (shape.token_tiles) {
      case 1: return launch<T, 1, true>(p, shape, splits, parts, hopper, stream);
      case 2: return launch<T, 2, true>(p, shape, splits, parts, hopper, stream);
      case 3: return launch<T, 3, true>(p, shape, splits, parts, hopper, stream);
      case 4: return launch<T, 4, true>(p, shape, splits, parts, hopper, stream);
      case 6: return launch<T, 6, true>(p, shape, splits, parts, hopper, stream);
      default: return launch<T, 8, true>(p, shape, splits, parts, hopper, stream);
    }
  };
  FDPP_RETURN_IF_ERROR(run_kernel());
  if (parts == nullptr) return {};
  const dim3 grid(static_cast<unsigned>((p.problem.n + kAddThreads - 1) / kAddThreads),
                  static_cast<unsigned>(std::min<int64_t>(p.problem.m, 65535)));
  add_parts_kernel<T><<<grid, kAddThreads, 0, stream>>>(parts, Epilogue<T>(p), p.problem.m,
                                                        static_cast<int>(p.problem.n), splits);
  return check_launch("cuda_flat_mma (sum of parts)");
}

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (!supports_half_gemm(problem, device, why)) return false;
  if (device.shared_memory_per_block < shared_bytes(8)) {
    *why = "a block has " + std::to_string(device.shared_memory_per_block) + " bytes of shared memory, needed are " +
           std::to_string(shared_bytes(8));
    return false;
  }
  const Shape shape = shape_of(problem, true);
  if (shape.row_blocks > std::numeric_limits<int32_t>::max() / kMaxSplits / shape.token_blocks) {
    *why = "M x N needs too many blocks";
    return false;
  }
  return true;
}

// A split shorter than 8 slices would be all start-up.
int64_t most_pieces(const GemmProblem& problem) { return std::min<int64_t>(kMaxSplits, problem.k / (8 * kSliceK)); }

GemmSplit split(const GemmProblem& problem, const DeviceInfo& device) {
  const Shape shape = shape_of(problem, problem.k % kVector == 0);
  // Two of the small blocks, or one of the large ones, keep enough bytes under way to fill a multiprocessor's share of
  // the memory bandwidth.
  const int64_t wanted = device.multiprocessors * (row_tiles(shape.token_tiles) == 1 ? 2 : 1);
  GemmSplit s;
  s.pieces = static_cast<int>(
      std::max<int64_t>(1, std::min(most_pieces(problem), wanted / (shape.row_blocks * shape.token_blocks))));
  return s;
}

void splits(const GemmProblem& problem, const DeviceInfo&, std::vector<GemmSplit>* out) {
  for (int pieces : {1, 2, 3, 4, 6, 8, 12, 16})
    if (pieces <= most_pieces(problem)) out->push_back({pieces});
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit& split) {
  return split.pieces == 1 ? 0 : sizeof(float) * split.pieces * problem.m * problem.n;
}

Status run(const GemmParams& params, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (split.pieces > 1 && workspace == nullptr)
    return invalid_argument("FdppFlatGemm: workspace is null, expected " +
                            std::to_string(workspace_bytes(params.problem, split)) + " bytes");
  float* parts = split.pieces == 1 ? nullptr : static_cast<float*>(workspace);
  return params.problem.dtype == DType::f16 ? run_typed<__half>(params, split.pieces, parts, stream)
                                            : run_typed<__nv_bfloat16>(params, split.pieces, parts, stream);
}

}  // namespace

extern const GemmVariant kCudaFlatMma;
const GemmVariant kCudaFlatMma = {"cuda_flat_mma",
                                  Backend::cuda,
                                  GemmKind::flat,
                                  "any M on tensor cores, tokens padded to 8, multi-stage pipeline, split-K",
                                  supports,
                                  split,
                                  workspace_bytes,
                                  run,
                                  splits};

}  // namespace fdpp
