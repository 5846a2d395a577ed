// M = 1...4 on CUDA cores: warps stream rows of B with 16-byte loads and take dot products with A, which stays in L1 and, if it
// is a single one, is normalised on the way. int4 weights are gemv_int4.cu's.
#include <algorithm>
#include <type_traits>

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

// Warps of a block that share a row's K: a power of two.
int sharing_warps(const GemmSplit& split) {
  int warps = 1;
  while (2 * warps <= std::min(split.pieces, kWarps)) warps *= 2;
  return warps;
}

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

// What a norm of A takes from the kernel: null without one.
template <typename T>
struct Norm {
  const uint4* weight = nullptr;  // [vectors]
  float epsilon = 0;

  // What rows of A are multiplied by, of the sum of their squares.
  __device__ __forceinline__ float factor(float squares, int vectors) const {
    return rsqrtf(squares / static_cast<float>(vectors * kVector) + epsilon);
  }
};

// The sums of a block's warps, and those of A's squares.
template <int M, int Rows, bool kNorm>
struct Sums {
  float rows[kWarps][M * Rows];
  float squares[kNorm ? kWarps : 1][M];
};

// A [M, vectors], B [n, vectors] in units of 16 bytes, [2 n, vectors] if `kGated`; rows of A are `a_stride` of them apart.
// kGated: half of a warp's rows are gates, the others what they gate. kNorm: A's rows are normalised: what their length makes
// of them is left to the end, when all of A has been seen.
template <typename T, int M, int Rows, bool kGated, bool kNorm>
__global__ void __launch_bounds__(kWarps* kWarp, blocks_at_once(M))
    gemv_kernel(const uint4* a, int a_stride, const uint4* __restrict__ b, Norm<T> norm, Epilogue<T> out, int n,
                int vectors, int splits, NextWeight next) {
  // Steps of K in flight, so that a thread has 8 loads of B under way where registers allow.
  constexpr int kSteps = Rows == 4 || M > 2 ? 2 : 4;
  constexpr int kOutputs = kGated ? Rows / 2 : Rows;
  __shared__ Sums<M, Rows, kNorm> sums;

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, teams = kWarps / splits;
  const int64_t first_output = (static_cast<int64_t>(blockIdx.x) * teams + warp / splits) * kOutputs;
  const uint64_t policy = evict_first_policy();

  const uint4* row[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    // Rows past the end repeat the last one; their sums are dropped.
    const int64_t output = first_output + r % kOutputs < n ? first_output + r % kOutputs : n - 1;
    row[r] = b + (output + (r < kOutputs ? 0 : n)) * vectors;
  }

  float acc[M][Rows] = {}, squares[M] = {};
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
    if (v == begin) {
      // The predecessor's end leaves the memory idle: one warp of each team brings what comes next into the L2.
      const int ahead = kSteps * stride, there = min(ahead, vectors - ahead);
      if (warp % splits == 0 && there > 0) {
#pragma unroll
        for (int r = 0; r < Rows; ++r)
          if (lane == r) prefetch_bytes(row[r] + ahead, there * static_cast<int>(sizeof(uint4)));
      }
      wait_for_predecessor();  // nobody writes weights, but A may still be on its way
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = v + s * stride;
      const uint4 nothing = make_uint4(0, 0, 0, 0);
      float x[M][kVector];
#pragma unroll
      for (int m = 0; m < M; ++m) unpack<T>(i < vectors ? a[static_cast<int64_t>(m) * a_stride + i] : nothing, x[m]);
      if constexpr (kNorm) {
        float scale[kVector];
        unpack<T>(i < vectors ? __ldg(norm.weight + i) : nothing, scale);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < kVector; ++e) {
            squares[m] = fmaf(x[m][e], x[m][e], squares[m]);
            x[m][e] *= scale[e];
          }
      }
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        float w[kVector];
        unpack<T>(weights[s][r], w);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < kVector; ++e) acc[m][r] = fmaf(w[e], x[m][e], acc[m][r]);
      }
    }
  }

  // The lanes' sums are added up, those of warps that share rows through `sums`, and stored.
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const float sum = warp_sum(acc[m][r]);
      if (lane == 0) sums.rows[warp][m * Rows + r] = sum;
    }
    if constexpr (kNorm) {
      const float sum = warp_sum(squares[m]);
      if (lane == 0) sums.squares[warp][m] = sum;
    }
  }
  __syncthreads();

  wait_for_predecessor();
  const int outputs = kOutputs * teams, m = threadIdx.x / outputs, in_block = threadIdx.x % outputs;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * outputs + in_block;
  if (m >= M || output >= n) return;
  const int first_warp = in_block / kOutputs * splits;
  const auto sum_of = [&](int r) {
    float sum = 0;
    for (int s = 0; s < splits; ++s) sum += sums.rows[first_warp + s][m * Rows + r];
    return sum;
  };
  float factor = 1;
  if constexpr (kNorm) {
    float all = 0;
    for (int s = 0; s < splits; ++s) all += sums.squares[first_warp + s][m];
    factor = norm.factor(all, vectors);
  }
  const int r = in_block % kOutputs;
  if constexpr (kGated)
    out.store_gated(m, output, sum_of(r) * factor, sum_of(kOutputs + r) * factor);
  else
    out.store(m, output, sum_of(r) * factor);
}

// Rows that do not start at 16 bytes: one warp an output, element by element.
template <typename T>
__global__ void __launch_bounds__(kWarps* kWarp)
    gemv_unaligned_kernel(const T* __restrict__ a, int a_stride, const T* __restrict__ b, Epilogue<T> out, bool gated,
                          int m_count, int n, int k) {
  const int lane = threadIdx.x % kWarp;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (output >= n) return;
  const auto multiply = [&](int64_t row, float (&acc)[kMaxM]) {
    const T* const w = b + row * k;
#pragma unroll 4
    for (int i = lane; i < k; i += kWarp) {
      const float weight = to_float(w[i]);
#pragma unroll
      for (int m = 0; m < kMaxM; ++m)
        if (m < m_count) acc[m] = fmaf(weight, to_float(a[static_cast<int64_t>(m) * a_stride + i]), acc[m]);
    }
  };
  float acc[kMaxM] = {}, up[kMaxM] = {};
  multiply(output, acc);
  if (gated) multiply(output + n, up);
#pragma unroll
  for (int m = 0; m < kMaxM; ++m) {
    if (m >= m_count) break;
    const float sum = warp_sum(acc[m]), up_sum = warp_sum(up[m]);
    if (lane != 0) continue;
    if (gated)
      out.store_gated(m, output, sum, up_sum);
    else
      out.store(m, output, sum);
  }
}

template <typename T, int M, int Rows, bool kGated, bool kNorm>
Status launch_kernel(const GemmParams& p, int splits, cudaStream_t stream) {
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const int64_t blocks = ceil_div(p.problem.n, (kGated ? Rows / 2 : Rows) * (kWarps / splits));
  const NextWeight next(p, blocks, int64_t{blocks_at_once(M)} * device.multiprocessors);
  const OverlappedLaunch launched(blocks, kWarps * kWarp, 0, stream, device);
  const Norm<T> norm{static_cast<const uint4*>(p.norm_weight), p.problem.norm_epsilon};
  return check_gpu(cudaLaunchKernelEx(&launched.config, gemv_kernel<T, M, Rows, kGated, kNorm>,
                                      static_cast<const uint4*>(p.a), static_cast<int>(p.problem.a_row_stride / kVector),
                                      static_cast<const uint4*>(p.b), norm, Epilogue<T>(p), static_cast<int>(p.problem.n),
                                      static_cast<int>(p.problem.k / kVector), splits, next),
                   "cuda_gemv");
}

template <typename T, int M>
Status launch(const GemmParams& p, int splits, cudaStream_t stream) {
  const auto with_rows = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    const bool gated = p.problem.activation == Activation::silu_mul;
    if constexpr (M == 1)
      if (p.problem.has_norm)
        return gated ? launch_kernel<T, M, kRows, true, true>(p, splits, stream)
                     : launch_kernel<T, M, kRows, false, true>(p, splits, stream);
    return gated ? launch_kernel<T, M, kRows, true, false>(p, splits, stream)
                 : launch_kernel<T, M, kRows, false, false>(p, splits, stream);
  };
  return rows_of_warp(splits) == 2 ? with_rows(std::integral_constant<int, 2>()) : with_rows(std::integral_constant<int, 4>());
}

template <typename T>
Status run_aligned(const GemmParams& p, int splits, cudaStream_t stream) {
  switch (p.problem.m) {
    case 1: return launch<T, 1>(p, splits, stream);
    case 2: return launch<T, 2>(p, splits, stream);
    case 3: return launch<T, 3>(p, splits, stream);
    default: return launch<T, 4>(p, splits, stream);
  }
}

template <typename T>
Status run_unaligned(const GemmParams& p, cudaStream_t stream) {
  const int n = static_cast<int>(p.problem.n);
  gemv_unaligned_kernel<T><<<(n + kWarps - 1) / kWarps, kWarps * kWarp, 0, stream>>>(
      static_cast<const T*>(p.a), static_cast<int>(p.problem.a_row_stride), static_cast<const T*>(p.b), Epilogue<T>(p),
      p.problem.activation == Activation::silu_mul, static_cast<int>(p.problem.m), n, static_cast<int>(p.problem.k));
  return check_launch("cuda_gemv (unaligned rows)");
}

template <typename T>
Status run_typed(const GemmParams& given, const GemmSplit& split, void* workspace, cudaStream_t stream) {
  const GemmProblem& problem = given.problem;
  const bool aligned = rows_aligned_16(given.a, problem.a_row_stride * 2) && rows_aligned_16(given.b, problem.k * 2) &&
                       rows_aligned_16(given.norm_weight, problem.k * 2);
  GemmParams p = given;
  // One row's norm is the kernel's own; with more it would spill registers.
  if (!aligned || problem.m > 1) FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &p));
  return aligned ? run_aligned<T>(p, sharing_warps(split), stream) : run_unaligned<T>(p, stream);
}

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (problem.m > kMaxM) {
    *why = "M is above " + std::to_string(kMaxM);
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
  const int64_t n = problem.weight_rows(), vectors = problem.k / kVector;
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

void splits(const GemmProblem& problem, const DeviceInfo&, std::vector<GemmSplit>* out) {
  if (problem.k % kVector != 0) return;
  for (int pieces = 1; pieces <= kWarps; pieces *= 2) out->push_back({pieces});
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

Status run(const GemmParams& params, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  if (params.problem.weight_format == WeightFormat::int4) return run_gemv_int4(params, split, stream);
  return params.problem.dtype == DType::f16 ? run_typed<__half>(params, split, workspace, stream)
                                            : run_typed<__nv_bfloat16>(params, split, workspace, stream);
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
