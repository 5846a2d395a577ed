// M = 1...4 on CUDA cores: warps stream rows of B with 16-byte loads and take dot products with A, which stays in L1. int4
// weights are gemv_int4.cu's.
#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/pipeline.cuh"
#include "kernels/gemm/cuda/epilogue.cuh"
#include "kernels/gemm/cuda/gemv_int4.h"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/prefetch.cuh"
#include "kernels/gemm/cuda/stream.cuh"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kMaxM = 4;
constexpr int kVector = 8;  // elements in 16 bytes

// Rows of B that a warp works on at once. A block takes kWarps / splits such groups, each by `splits` warps side by
// side in K; the widest split serves small N, where thinner groups give every multiprocessor a block.
constexpr int rows_of_warp(int splits) { return splits == kWarps ? 2 : 4; }
constexpr int rows_of_block(int splits) { return rows_of_warp(splits) * (kWarps / splits); }
constexpr int blocks_at_once(int m) { return m <= 2 ? 3 : 2; }  // on a multiprocessor, by their registers

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

// A [M, vectors], B [n, vectors] in units of 16 bytes; rows of A are `a_stride` of them apart.
template <typename T, int M, int Rows>
__global__ void __launch_bounds__(kWarps* kWarp, blocks_at_once(M))
    gemv_kernel(const uint4* a, int a_stride, const uint4* __restrict__ b, Epilogue<T> out, int n, int vectors,
                int splits, NextWeight next) {
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
    if (threadIdx.x == 0 && v + kSteps * stride >= vectors) prefetch(next);
    if (v == begin) wait_for_predecessor();  // nobody writes weights, but A may still be on its way
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      float x[M][kVector];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const int i = v + s * stride;
        unpack<T>(i < vectors ? a[static_cast<int64_t>(m) * a_stride + i] : make_uint4(0, 0, 0, 0), x[m]);
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

// Rows that do not start at 16 bytes: one warp a row, element by element.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    gemv_unaligned_kernel(const T* __restrict__ a, int a_stride, const T* __restrict__ b, Epilogue<T> out,
                          int m_count, int n, int k) {
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
      if (m < m_count) acc[m] = fmaf(weight, to_float(a[static_cast<int64_t>(m) * a_stride + i]), acc[m]);
  }
#pragma unroll
  for (int m = 0; m < kMaxM; ++m) {
    if (m >= m_count) break;
    const float sum = warp_sum(acc[m]);
    if (lane == 0) out.store(m, row, sum);
  }
}

template <typename T, int M>
Status launch(const GemmParams& p, int splits, cudaStream_t stream) {
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const int64_t blocks = ceil_div(p.problem.n, rows_of_block(splits));
  const NextWeight next(p, blocks, int64_t{blocks_at_once(M)} * device.multiprocessors);
  const OverlappedLaunch launched(blocks, kWarps * kWarp, 0, stream, device);
  const auto kernel = rows_of_warp(splits) == 2 ? gemv_kernel<T, M, 2> : gemv_kernel<T, M, 4>;
  return check_gpu(cudaLaunchKernelEx(&launched.config, kernel, static_cast<const uint4*>(p.a),
                                      static_cast<int>(p.problem.a_row_stride / kVector),
                                      static_cast<const uint4*>(p.b), Epilogue<T>(p), static_cast<int>(p.problem.n),
                                      static_cast<int>(p.problem.k / kVector), splits, next),
                   "cuda_gemv");
}

template <typename T>
Status run_typed(const GemmParams& p, int splits, cudaStream_t stream) {
  if (!rows_aligned_16(p.a, p.problem.a_row_stride * 2) || !rows_aligned_16(p.b, p.problem.k * 2)) {
    const int n = static_cast<int>(p.problem.n);
    gemv_unaligned_kernel<T><<<(n + kWarps - 1) / kWarps, kWarps * kWarp, 0, stream>>>(
        static_cast<const T*>(p.a), static_cast<int>(p.problem.a_row_stride), static_cast<const T*>(p.b),
        Epilogue<T>(p), static_cast<int>(p.problem.m), n, static_cast<int>(p.problem.k));
    return check_launch("cuda_gemv (unaligned rows)");
  }
  switch (p.problem.m) {
    case 1: return launch<T, 1>(p, splits, stream);
    case 2: return launch<T, 2>(p, splits, stream);
    case 3: return launch<T, 3>(p, splits, stream);
    default: return launch<T, 4>(p, splits, stream);
  }
}

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (problem.m > kMaxM) {
    *why = "M is above " + std::to_string(kMaxM);
    return false;
  }
  if (problem.activation == Activation::silu_mul) {
    *why = "no silu_mul";
    return false;
  }
  if (!supports_half_gemm(problem, device, why)) return false;
  return problem.weight_format == WeightFormat::int4 ? supports_gemv_int4(problem, why) : has_weights_of_a(problem, why);
}

// How much of what warps side by side in K could load at a time there is nothing for, as a factor of 1 or more.
double idle(int64_t vectors, int pieces) {
  const int64_t loads = int64_t{pieces} * kWarp * (pieces == kWarps ? 4 : 2);
  return static_cast<double>(ceil_div(vectors, loads) * loads) / static_cast<double>(vectors);
}

// What an H200 liked: many warps side by side where rows are long or few.
GemmSplit split(const GemmProblem& problem, const DeviceInfo& device) {
  if (problem.weight_format == WeightFormat::int4) return gemv_int4_split(problem, device);
  const int64_t n = problem.n, vectors = problem.k / kVector;
  const bool few_rows = n < 30 * int64_t{device.multiprocessors};
  GemmSplit s;
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
  if (params.problem.weight_format == WeightFormat::int4) return run_gemv_int4(params, split, stream);
  return params.problem.dtype == DType::f16 ? run_typed<__half>(params, sharing_warps(split), stream)
                                            : run_typed<__nv_bfloat16>(params, sharing_warps(split), stream);
}

}  // namespace

extern const GemmVariant kCudaGemv;
const GemmVariant kCudaGemv = {"cuda_gemv",
                               Backend::cuda,
                               GemmKind::gemv,
                               "M up to 4 on CUDA cores, with int4 weights 1 on tensor cores; weights streamed past the caches",
                               supports,
                               split,
                               workspace_bytes,
                               run,
                               splits};

}  // namespace fdpp
