// Few rows of A (tokens) on tensor cores, each warp with a ring of its own: it copies rows of B piece by piece into shared
// memory, long runs of each row at a time, and multiplies what it copied, so that no warp ever waits for another before
// the sums are added up. Tokens come from L1.
//
// Rows of B fill the 16-wide side of m16n8k16, tokens the 8-wide one, so that M is padded to 8 only. A product may sum
// over K in any order as long as both operands agree on it: lane (g, t) = (lane / 4, lane % 4) takes 16 bytes, 8 elements
// of K, of rows g and g + 8 of B and of token g, which are its fragments of two products.
#include <algorithm>

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
constexpr int kWarps = 8;
constexpr int kMaxTokens = 64;
constexpr int kMaxCluster = 8;
constexpr int kVector = 8;                       // elements in 16 bytes
constexpr int kStepVectors = 4;  // of a row, for two products of a warp

// What a warp copies at a time: 16 rows, `steps` times 64 bytes of each.
__host__ __device__ constexpr int piece_bytes(int steps) { return 16 * steps * 64; }
constexpr int shared_bytes(int steps, int stages, int token_tiles) {
  return std::max(kWarps * stages * piece_bytes(steps), kWarps * 16 * 8 * token_tiles * static_cast<int>(sizeof(float)));
}

// A [m, vectors], B [n, vectors] in units of 16 bytes. A block has kWarps / splits groups of 16 rows, each of `splits`
// warps side by side in K; the blocks of a cluster lie side by side in K as well.
template <typename T, int NT, int kSteps, int kStages>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    stream_kernel(const uint4* a, const uint4* __restrict__ b, Epilogue<T> out, int m, int n, int vectors, int splits,
                  int cluster) {
  constexpr int kGroupRows = 16, kTokens = 8 * NT;
  constexpr int kTurn = kSteps * kStepVectors;  // vectors of a row that a warp copies at a time
  constexpr int kRowsPerCopy = kWarp / kTurn > 0 ? kWarp / kTurn : 1;
  static_assert(kTurn <= kWarp, "a copy of a warp is whole rows");
  extern __shared__ __align__(128) unsigned char shared[];

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int rank = blockIdx.x % cluster;
  const int rows = kGroupRows * (kWarps / splits);
  const int64_t block_row = static_cast<int64_t>(blockIdx.x / cluster) * rows;
  const int64_t first_row = block_row + warp / splits * kGroupRows;
  const uint64_t policy = evict_first_policy();
  const int stride = splits * cluster * kTurn, begin = (rank * splits + warp % splits) * kTurn;

  // Vector v of row r lies at v ^ key(r): rows 2 q and 2 q + 1, which a quarter of a warp reads together, in different
  // halves of 128 bytes.
  const auto place = [](int row, int v) { return row * kTurn + (v ^ ((row % 2 * 4 + row / 2 % 4) % kTurn)); };
  uint4* const ring = reinterpret_cast<uint4*>(shared + warp * kStages * piece_bytes(kSteps));
  const int copy_row = lane / kTurn, copy_vector = lane % kTurn;
  const auto fill = [&](int first, int stage) {
    uint4* const to = ring + stage * kGroupRows * kTurn;
    const int v = first + copy_vector;
#pragma unroll
    for (int r = 0; r < kGroupRows; r += kRowsPerCopy) {
      // Rows past the end repeat the last one; their sums are dropped.
      const int64_t row = min(first_row + r + copy_row, static_cast<int64_t>(n) - 1);
      cp_async_streamed_16(to + place(r + copy_row, copy_vector), b + row * vectors + v, v < vectors, policy);
    }
  };

  release_successor();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * stride < vectors) fill(begin + s * stride, s);
    cp_async_commit();
  }
  wait_for_predecessor();  // nobody writes weights, but A may still be on its way

  float acc[NT][4] = {};
  int stage = 0;
  for (int first = begin; first < vectors; first += stride) {
    // Ahead of its weights' arrival.
    uint4 x[NT <= 2 ? kSteps : 1][NT];
    const auto load_tokens = [&](int s, uint4 (&to)[NT]) {
      const int v = first + s * kStepVectors + lane % 4;
#pragma unroll
      for (int t = 0; t < NT; ++t)
        to[t] = v < vectors ? a[static_cast<int64_t>(min(8 * t + lane / 4, m - 1)) * vectors + v] : make_uint4(0, 0, 0, 0);
    };
    if constexpr (NT <= 2) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) load_tokens(s, x[s]);
    }
    cp_async_wait<kStages - 2>();
    __syncwarp();
    const int next = first + (kStages - 1) * stride;
    if (next < vectors) fill(next, stage == 0 ? kStages - 1 : stage - 1);
    cp_async_commit();
    const uint4* const weights = ring + stage * kGroupRows * kTurn;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int v = s * kStepVectors + lane % 4;
      const uint4 low = weights[place(lane / 4, v)], high = weights[place(lane / 4 + 8, v)];
      const uint32_t w0[4] = {low.x, high.x, low.y, high.y}, w1[4] = {low.z, high.z, low.w, high.w};
      if constexpr (NT > 2) load_tokens(s, x[0]);
#pragma unroll
      for (int t = 0; t < NT; ++t) {
        const uint4& tokens = x[NT <= 2 ? s : 0][t];
        mma_m16n8k16<T>(acc[t], w0, tokens.x, tokens.y);
        mma_m16n8k16<T>(acc[t], w1, tokens.z, tokens.w);
      }
    }
    __syncwarp();  // nobody reads the stage any more
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  cp_async_wait<0>();
  __syncthreads();  // the rings make room for the sums
  float(*const sums)[kTokens][kGroupRows] = reinterpret_cast<float(*)[kTokens][kGroupRows]>(shared);
#pragma unroll
  for (int t = 0; t < NT; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][8 * t + lane % 4 * 2 + i % 2][lane / 4 + 8 * (i / 2)] = acc[t][i];
  const auto finish = [&](auto&& part) {  // part(block, warp, token, row): a sum
    for (int i = rank * kWarps * kWarp + threadIdx.x; i < m * rows; i += cluster * kWarps * kWarp) {
      const int token = i / rows, in_block = i % rows;
      if (block_row + in_block >= n) continue;
      const int first_warp = in_block / kGroupRows * splits;
      float sum = 0;
      for (int block = 0; block < cluster; ++block)
        for (int s = 0; s < splits; ++s) sum += part(block, first_warp + s, token, in_block % kGroupRows);
      out.store(token, block_row + in_block, sum);
    }
  };
#if __CUDA_ARCH__ >= 900
  if (cluster > 1) {
    cluster_arrive();
    cluster_wait();
    finish([&](int block, int w, int token, int r) { return load_remote(remote_address(&sums[w][token][r], block)); });
    cluster_arrive();  // a block's sums stay while others read them
    cluster_wait();
    return;
  }
#endif
  __syncthreads();
  finish([&](int, int w, int token, int r) { return sums[w][token][r]; });
}

// Tiles of 8 tokens, of those numbers that are compiled.
int token_tiles_of(const GemmProblem& p) {
  const int64_t tiles = ceil_div(p.m, 8);
  for (int compiled : {1, 2, 3, 4, 6})
    if (tiles <= compiled) return compiled;
  return 8;
}

bool supports(const GemmProblem& p, const DeviceInfo& device, std::string* why) {
  if (!supports_half_gemm(p, device, why)) return false;
  if (p.m > kMaxTokens) {
    *why = "takes up to " + std::to_string(kMaxTokens) + " rows of A, not " + std::to_string(p.m);
  } else if (p.k % kVector != 0) {
    *why = "takes K that is a multiple of " + std::to_string(kVector) + ", not " + std::to_string(p.k);
  } else {
    return true;
  }
  return false;
}

// The widest block that leaves every multiprocessor its three blocks.
GemmSplit split(const GemmProblem& p, const DeviceInfo& device) {
  GemmSplit s;
  while (s.pieces < kWarps && ceil_div(p.n * s.pieces, 16 * kWarps) < 3 * device.multiprocessors) s.pieces *= 2;
  return s;
}

size_t workspace_bytes(const GemmProblem&, const GemmSplit&) { return 0; }

template <typename T, int NT, int kSteps, int kStages>
Status launch(const GemmParams& params, const GemmSplit& split, const ExecutionContext& context) {
  const GemmProblem& p = params.problem;
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const bool hopper = device.compute_capability >= 90;
  int splits = 1, cluster = 1;  // powers of two
  while (2 * splits <= std::min(split.pieces, kWarps)) splits *= 2;
  while (hopper && 2 * cluster * kWarps <= split.pieces && 2 * cluster <= kMaxCluster) cluster *= 2;
  const int64_t rows = 16 * (kWarps / splits);
  constexpr int kShared = shared_bytes(kSteps, kStages, NT);
  const auto kernel = stream_kernel<T, NT, kSteps, kStages>;
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(kernel), kShared));

  cudaLaunchAttribute attributes[2] = {};  // both there from compute capability 9.0 on
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ceil_div(p.n, rows) * cluster));
  config.blockDim = dim3(kWarps * kWarp);
  config.dynamicSmemBytes = kShared;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes;
  config.numAttrs = !hopper ? 0 : cluster > 1 ? 2 : 1;
  return check_gpu(cudaLaunchKernelEx(&config, kernel, static_cast<const uint4*>(params.a),
                                      static_cast<const uint4*>(params.b), Epilogue<T>(params), static_cast<int>(p.m),
                                      static_cast<int>(p.n), static_cast<int>(p.k / kVector), splits, cluster),
                   "cuda_flat_stream");
}

// Experiment: stages 0: 256 bytes of a row, three stages; 1: 512, two; 2: 256, two; 3: 512, three.
template <typename T, int NT>
Status launch_rows(const GemmParams& params, const GemmSplit& split, const ExecutionContext& context) {
  switch (split.stages) {
    case 1: return launch<T, NT, 8, 2>(params, split, context);
    case 2: return launch<T, NT, 4, 2>(params, split, context);
    case 3: return launch<T, NT, 8, 3>(params, split, context);
    default: return launch<T, NT, 4, 3>(params, split, context);
  }
}

template <typename T>
Status launch_typed(const GemmParams& params, const GemmSplit& split, const ExecutionContext& context) {
  switch (token_tiles_of(params.problem)) {
    case 1: return launch_rows<T, 1>(params, split, context);
    case 2: return launch_rows<T, 2>(params, split, context);
    case 3: return launch_rows<T, 3>(params, split, context);
    case 4: return launch_rows<T, 4>(params, split, context);
    case 6: return launch_rows<T, 6>(params, split, context);
    default: return launch_rows<T, 8>(params, split, context);
  }
}

Status run(const GemmParams& params, const GemmSplit& split, void*, const ExecutionContext& context) {
  for (auto [name, data] : {std::pair{"A", params.a}, std::pair{"B", params.b}})
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0)
      return invalid_argument(std::string("FdppFlatGemm: ") + name + " does not start at a multiple of 16 bytes");
  return params.problem.dtype == DType::f16 ? launch_typed<__half>(params, split, context)
                                            : launch_typed<__nv_bfloat16>(params, split, context);
}

}  // namespace

extern const GemmVariant kCudaFlatStream;
const GemmVariant kCudaFlatStream = {"cuda_flat_stream",
                                     Backend::cuda,
                                     GemmKind::flat,
                                     "M up to 64 on tensor cores, tokens padded to 8, a ring of long runs of rows for each warp",
                                     supports,
                                     split,
                                     workspace_bytes,
                                     run};

}  // namespace fdpp
