// M = 1...4 on CUDA cores: warps stream rows of B with 16-byte loads and take dot products with A, which stays in L1.
#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/common/pipeline.cuh"
#include "kernels/common/shared_memory_grant.h"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/cuda/weights.cuh"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kMaxM = 4;
constexpr int kMaxInt4K = 32768;  // A in shared memory
constexpr int kVector = 8;  // elements in 16 bytes

// Rows of B that a warp works on at once. A block takes kWarps / splits such groups, each by `splits` warps side by
// side in K; the widest split serves small N, where thinner groups give every multiprocessor a block.
constexpr int rows_of_warp(int splits) { return splits == kWarps ? 2 : 4; }
constexpr int rows_of_block(int splits) { return rows_of_warp(splits) * (kWarps / splits); }
constexpr int kInt4Rows = 2;    // of a warp at once
constexpr int kInt4Blocks = 3;  // of a multiprocessor

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

template <typename T>
__device__ __forceinline__ void unpack(const uint4& v, float (&out)[kVector]) {
  const uint32_t pairs[kVector / 2] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const float2 f = unpack2<T>(pairs[i]);
    out[2 * i] = f.x;
    out[2 * i + 1] = f.y;
  }
}

// The end of a block's rows: the lanes' sums are added up, those of warps that share rows through `sums`, and stored.
template <typename T, int M, int Rows>
__device__ __forceinline__ void store_rows(const float (&acc)[M][Rows], float (&sums)[kWarps][M * Rows],
                                           const Epilogue<T>& out, int n, int splits) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float sum = warp_sum(acc[m][r]);
      if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp][m * Rows + r] = sum;
    }
  __syncthreads();

  wait_for_predecessor();
  const int rows = Rows * (kWarps / splits);
  const int m = threadIdx.x / rows, in_block = threadIdx.x % rows;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows + in_block;
  if (m >= M || row >= n) return;
  float sum = 0;
  for (int s = 0; s < splits; ++s) sum += sums[in_block / Rows * splits + s][m * Rows + in_block % Rows];
  out.store(m, row, sum);
}

// A [M, vectors], B [n, vectors] in units of 16 bytes.
template <typename T, int M, int Rows>
__global__ void __launch_bounds__(kWarps* kWarp, M <= 2 ? 3 : 2)
    gemv_kernel(const uint4* a, const uint4* __restrict__ b, Epilogue<T> out, int n, int vectors,
                int splits) {
  // Steps of K in flight, so that a thread has 8 loads of B under way where registers allow.
  constexpr int kSteps = Rows == 4 || M > 2 ? 2 : 4;
  __shared__ float sums[kWarps][M * Rows];

  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * Rows * (kWarps / splits) + warp / splits * Rows;
  const uint64_t policy = evict_first_policy();

  const uint4* row[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    // Rows past the end repeat the last one; their sums are dropped.
    const int64_t i = first_row + r < n ? first_row + r : n - 1;
    row[r] = b + i * vectors;
  }

  float acc[M][Rows] = {};
  const int stride = splits * kWarp, begin = warp % splits * kWarp + lane;
  release_successor();
  for (int v = begin; v < vectors; v += kSteps * stride) {
    uint4 weights[kSteps][Rows];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int r = 0; r < Rows; ++r)
        weights[s][r] = load_streamed_16(row[r] + v + s * stride, v + s * stride < vectors, policy);
    if (v == begin) wait_for_predecessor();  // nobody writes weights, but A may still be on its way
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      float x[M][kVector];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const int i = v + s * stride;
        unpack<T>(i < vectors ? a[static_cast<int64_t>(m) * vectors + i] : make_uint4(0, 0, 0, 0), x[m]);
      }
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        float w[kVector];
        unpack<T>(weights[s][r], w);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int i = 0; i < kVector; ++i) acc[m][r] = fmaf(w[i], x[m][i], acc[m][r]);
      }
    }
  }

  store_rows<T, M, Rows>(acc, sums, out, n, splits);
}

// int4 weights: A [1, 4 * vectors] float16, B [n, row_vectors], of which `vectors` count; each vector has 32 numbers of a
// block. A pair of numbers becomes (q - zero point) / 16 in one operation, exactly, and meets its pair of A in float16, in
// sums of eight, which a sixteenth keeps from overflowing for A up to 16000; from there on all is float32. A lies in shared
// memory, the first 16 bytes of each vector's 64 before the second and so on, so that lanes side by side read side by side.
//
// The grid is no more than runs at once: `splits` warps side by side in K take one tile of rows after the other, the
// vectors of the next ones always under way.
__global__ void __launch_bounds__(kWarps* kWarp, kInt4Blocks)
    gemv_int4_kernel(const uint4* a, const uint4* __restrict__ b, const __half* __restrict__ scales,
                     const unsigned char* __restrict__ zero_points, Epilogue<__half> out, int n, int vectors,
                     int row_vectors, int blocks, int block_log, int splits) {
  constexpr int kRows = kInt4Rows, kDepth = 4;  // vectors of a row that a lane has under way
  struct Step {
    uint4 weights[kRows];
    __half scale[kRows];
    int zero[kRows];
  };
  extern __shared__ uint4 shared_a[];
  __shared__ float sums[2][kWarps][kRows];  // of this tile and of the one before
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, teams = kWarps / splits;
  const uint64_t policy = evict_first_policy();
  const int stride = splits * kWarp, begin = warp % splits * kWarp + lane;
  const int tiles = (n + kRows - 1) / kRows, tiles_at_once = gridDim.x * teams;
  const int steps = (vectors + stride - 1) / stride;                              // of a tile, for every lane
  const int total = (tiles + tiles_at_once - 1) / tiles_at_once * steps;          // for every warp of the block
  struct Place {
    int tile, step;
  };
  const Place start = {static_cast<int>(blockIdx.x) * teams + warp / splits, 0};
  const auto advance = [&](Place& at) {
    if (++at.step == steps) at.step = 0, at.tile += tiles_at_once;
  };

  const auto load = [&](Step& step, const Place& at) {
    const int v = begin + at.step * stride, block = (v * 32) >> block_log;
    const bool there = v < vectors && at.tile < tiles;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = min(at.tile * kRows + r, n - 1);  // sums of rows past the end are dropped
      step.weights[r] = load_streamed_16(b + row * row_vectors + v, there, policy);
      step.scale[r] = there ? scales[row * blocks + block] : __half(0.0f);
      step.zero[r] = 8;
      if (zero_points != nullptr && there)
        step.zero[r] = zero_points[row * ((blocks + 1) / 2) + block / 2] >> block % 2 * 4 & 15;
    }
  };
  float acc[kRows] = {};
  const auto multiply = [&](const Step& step, int v) {
    if (v >= vectors) return;
    uint32_t x[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 four = shared_a[i * vectors + v];
      x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t words[4] = {step.weights[r].x, step.weights[r].y, step.weights[r].z, step.weights[r].w};
      const uint32_t low_zero = 0xd400d400 + step.zero[r] * 0x00010001;   // -(64 + zero / 16)
      const uint32_t high_zero = 0xc400c400 + step.zero[r] * 0x00100010;  // -(4 + zero / 16)
      float total = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        __half2 eight;
#pragma unroll
        for (int i = 0; i < 8; ++i) {  // pairs
          const uint32_t word = words[2 * half + i / 4] >> (i % 4 / 2 * 8);
          uint32_t pair;
          if (i % 2 == 0)
            asm("fma.rn.f16x2 %0, %1, %2, %3;"
                : "=r"(pair)
                : "r"(masked_into<0x000f000f>(word, register_of<0x64006400>())), "r"(0x2c002c00), "r"(low_zero));
          else
            asm("fma.rn.f16x2 %0, %1, %2, %3;"
                : "=r"(pair)
                : "r"(masked_into<0x00f000f0>(word, register_of<0x54005400>())), "r"(0x2c002c00), "r"(high_zero));
          const __half2 w = *reinterpret_cast<const __half2*>(&pair);
          const __half2 other = *reinterpret_cast<const __half2*>(&x[8 * half + i]);
          eight = i == 0 ? __hmul2(w, other) : __hfma2(w, other, eight);
        }
        const float2 two = __half22float2(eight);
        total += two.x + two.y;
      }
      acc[r] = fmaf(16 * __half2float(step.scale[r]), total, acc[r]);
    }
  };
  int parity = 0;
  const auto store_tile = [&](int tile) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = warp_sum(acc[r]);
      if (lane == 0) sums[parity][warp][r] = sum;
      acc[r] = 0;
    }
    if (splits > 1)
      __syncthreads();
    else
      __syncwarp();
    if (warp % splits == 0 && lane < kRows && tile * kRows + lane < n) {
      float sum = 0;
      for (int s = 0; s < splits; ++s) sum += sums[parity][warp + s][lane];
      out.store(0, tile * kRows + lane, sum);
    }
    parity ^= 1;
  };

  Step under_way[kDepth];
  Place loading = start, at = start;
#pragma unroll
  for (int i = 0; i < kDepth; ++i, advance(loading)) load(under_way[i], loading);
  release_successor();
  wait_for_predecessor();  // nobody writes weights, but A may still be on its way
  for (int i = threadIdx.x; i < 4 * vectors; i += kWarps * kWarp) shared_a[i % 4 * vectors + i / 4] = a[i];
  __syncthreads();
  for (int done = 0; done < total; done += kDepth) {
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (done + i >= total) break;
      multiply(under_way[i], begin + at.step * stride);
      load(under_way[i], loading);
      advance(loading);
      if (at.step + 1 == steps) store_tile(at.tile);
      advance(at);
    }
  }
}

// Rows that do not start at 16 bytes: one warp a row, element by element.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    gemv_unaligned_kernel(const T* __restrict__ a, const T* __restrict__ b, Epilogue<T> out, int m_count, int n,
                          int k) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= n) return;
  const T* w = b + row * k;
  float acc[kMaxM] = {};
#pragma unroll 4
  for (int i = lane; i < k; i += kWarp) {
    const float weight = to_float(w[i]);
#pragma unroll
    for (int m = 0; m < kMaxM; ++m)
      if (m < m_count) acc[m] = fmaf(weight, to_float(a[static_cast<int64_t>(m) * k + i]), acc[m]);
  }
#pragma unroll
  for (int m = 0; m < kMaxM; ++m) {
    if (m >= m_count) break;
    const float sum = warp_sum(acc[m]);
    if (lane == 0) out.store(m, row, sum);
  }
}

// A block for every so many rows; `most` blocks on a multiprocessor, 0: any number.
Status configure(const GemmParams& p, int rows, int most, cudaStream_t stream, cudaLaunchAttribute* overlap,
                 cudaLaunchConfig_t* config) {
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const int64_t blocks = ceil_div(p.problem.n, rows);
  overlap->id = cudaLaunchAttributeProgrammaticStreamSerialization;  // there from compute capability 9.0 on
  overlap->val.programmaticStreamSerializationAllowed = 1;
  const int64_t at_once = int64_t{most} * device.multiprocessors;
  config->gridDim = dim3(static_cast<unsigned>(most > 0 ? std::min(blocks, at_once) : blocks));
  config->blockDim = dim3(kWarps * kWarp);
  config->stream = stream;
  config->attrs = overlap;
  config->numAttrs = device.compute_capability >= 90 ? 1 : 0;
  return {};
}

template <typename T, int M>
Status launch(const GemmParams& p, int splits, cudaStream_t stream) {
  cudaLaunchAttribute overlap{};
  cudaLaunchConfig_t config{};
  FDPP_RETURN_IF_ERROR(configure(p, rows_of_block(splits), 0, stream, &overlap, &config));
  const auto kernel = rows_of_warp(splits) == 2 ? gemv_kernel<T, M, 2> : gemv_kernel<T, M, 4>;
  return check_gpu(cudaLaunchKernelEx(&config, kernel, static_cast<const uint4*>(p.a), static_cast<const uint4*>(p.b),
                                      Epilogue<T>(p), static_cast<int>(p.problem.n),
                                      static_cast<int>(p.problem.k / kVector), splits),
                   "cuda_gemv");
}

Status launch_int4(const GemmParams& p, int splits, cudaStream_t stream) {
  cudaLaunchAttribute overlap{};
  cudaLaunchConfig_t config{};
  FDPP_RETURN_IF_ERROR(configure(p, kInt4Rows * (kWarps / splits), kInt4Blocks, stream, &overlap, &config));
  static SharedMemoryGrant grant;
  FDPP_RETURN_IF_ERROR(grant.ensure(reinterpret_cast<const void*>(gemv_int4_kernel), 2 * kMaxInt4K));
  config.dynamicSmemBytes = static_cast<size_t>(p.problem.k) * 2;
  const int blocks = static_cast<int>(p.problem.blocks()), row_vectors = static_cast<int>(weight_row_bytes(p.problem) / 16);
  return check_gpu(
      cudaLaunchKernelEx(&config, gemv_int4_kernel, static_cast<const uint4*>(p.a), static_cast<const uint4*>(p.b),
                         static_cast<const __half*>(p.scales), static_cast<const unsigned char*>(p.zero_points),
                         Epilogue<__half>(p), static_cast<int>(p.problem.n), static_cast<int>(p.problem.k / 32),
                         row_vectors, blocks, block_log(p.problem), splits),
      "cuda_gemv (int4)");
}

template <typename T>
Status run_typed(const GemmParams& p, int splits, cudaStream_t stream) {
  if (!rows_aligned_16(p.a, p.problem.k * 2) || !rows_aligned_16(p.b, p.problem.k * 2)) {
    const int n = static_cast<int>(p.problem.n);
    gemv_unaligned_kernel<T><<<(n + kWarps - 1) / kWarps, kWarps * kWarp, 0, stream>>>(
        static_cast<const T*>(p.a), static_cast<const T*>(p.b), Epilogue<T>(p), static_cast<int>(p.problem.m), n,
        static_cast<int>(p.problem.k));
    return check_launch("cuda_gemv (unaligned rows)");
  }
  switch (p.problem.m) {
    case 1: return launch<T, 1>(p, splits, stream);
    case 2: return launch<T, 2>(p, splits, stream);
    case 3: return launch<T, 3>(p, splits, stream);
    default: return launch<T, 4>(p, splits, stream);
  }
}

bool supports_int4(const GemmProblem& problem, std::string* why) {
  if (problem.dtype != DType::f16) {
    *why = std::string("A is ") + dtype_name(problem.dtype) + ", expected float16 with int4 weights";
  } else if (problem.m > 1) {
    *why = "M is above 1 with int4 weights";
  } else if (problem.k > kMaxInt4K) {
    *why = "K is above " + std::to_string(kMaxInt4K) + " with int4 weights";
  } else if (problem.block_size < 32 || problem.k % 32 != 0) {
    *why = "int4 weights in blocks of 16, or K that is not a multiple of 32";
  } else {
    return true;
  }
  return false;
}

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (problem.m > kMaxM) {
    *why = "M is above " + std::to_string(kMaxM);
    return false;
  }
  if (problem.activation == Activation::silu_mul) return has_no_activation(problem, why);
  if (!supports_half_gemm(problem, device, why)) return false;
  return problem.weight_format == WeightFormat::int4 ? supports_int4(problem, why) : has_weights_of_a(problem, why);
}

// How much of what warps side by side in K could load at a time there is nothing for, as a factor of 1 or more.
double idle(int64_t vectors, int pieces) {
  const int64_t loads = int64_t{pieces} * kWarp * (pieces == kWarps ? 4 : 2);
  return static_cast<double>(ceil_div(vectors, loads) * loads) / static_cast<double>(vectors);
}

// What an H200 liked: many warps side by side where rows are long or few.
GemmSplit split(const GemmProblem& problem, const DeviceInfo& device) {
  const int64_t n = problem.n, vectors = problem.k / kVector;
  const bool few_rows = n < 30 * int64_t{device.multiprocessors};
  GemmSplit s;
  if (problem.weight_format == WeightFormat::int4) {
    while (s.pieces < kWarps && ceil_div(n * s.pieces, kInt4Rows * kWarps) < device.multiprocessors) s.pieces *= 2;
    return s;
  }
  if (problem.k % kVector != 0) return s;
  if (vectors >= 1664 || (n < 11 * int64_t{device.multiprocessors} && vectors >= 512)) {
    s.pieces = 8;
  } else if (vectors >= (few_rows ? 192 : 384) && idle(vectors, 4) < (few_rows ? 1.4 : 1.15)) {
    s.pieces = 4;
  } else if (vectors >= (few_rows ? 96 : 192)) {
    s.pieces = 2;
  }
  return s;
}

// Warps of a block that share a row's K: a power of two.
int sharing_warps(const GemmSplit& split) {
  int warps = 1;
  while (2 * warps <= std::min(split.pieces, kWarps)) warps *= 2;
  return warps;
}

void splits(const GemmProblem& problem, const DeviceInfo&, std::vector<GemmSplit>* out) {
  if (problem.k % kVector != 0) return;
  for (int pieces = 1; pieces <= kWarps; pieces *= 2) out->push_back({pieces});
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

Status run(const GemmParams& given, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  GemmParams params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &params));
  if (params.problem.weight_format == WeightFormat::int4) {
    for (auto [name, data] : {std::pair{"A", params.a}, std::pair{"B", params.b}})
      if (reinterpret_cast<uintptr_t>(data) % 16 != 0)
        return invalid_argument(std::string("FdppFlatGemm: ") + name + " does not start at a multiple of 16 bytes");
    return launch_int4(params, sharing_warps(split), stream);
  }
  return params.problem.dtype == DType::f16 ? run_typed<__half>(params, sharing_warps(split), stream)
                                            : run_typed<__nv_bfloat16>(params, sharing_warps(split), stream);
}

}  // namespace

extern const GemmVariant kCudaGemv;
const GemmVariant kCudaGemv = {"cuda_gemv",
                               Backend::cuda,
                               GemmKind::gemv,
                               "M up to 4 (int4 weights: 1) on CUDA cores, weights streamed past the caches",
                               supports,
                               split,
                               workspace_bytes,
                               run,
                               splits};

}  // namespace fdpp
