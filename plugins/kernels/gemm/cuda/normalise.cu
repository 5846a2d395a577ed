#include "kernels/gemm/cuda/normalise.h"

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/mma.cuh"
#include "kernels/common/pipeline.cuh"
#include "kernels/gemm/cuda/epilogue.cuh"

namespace fdpp {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 8;  // elements in 16 bytes

// Of all threads' values. `slot`: of shared memory, another one for each sum of a kernel.
__device__ __forceinline__ float block_sum(float value, int slot) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  __shared__ float sums[2][kWarps];
  if (threadIdx.x % 32 == 0) sums[slot][threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) value += sums[slot][w];
  return value;
}

// A block a row: `a`, `y` [M, K], rows of `a` `a_stride` apart; `bias` may be null.
template <typename T, Norm Kind>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const T* a, int64_t a_stride, const T* __restrict__ weight, const T* __restrict__ bias, T* y, int k,
                     float epsilon) {
  release_successor();
  wait_for_predecessor();
  const T* const row = a + blockIdx.x * a_stride;
  T* const out = y + static_cast<int64_t>(blockIdx.x) * k;
  float mean = 0;
  if constexpr (Kind == Norm::layer) {
    for (int i = threadIdx.x; i < k; i += kThreads) mean += to_float(row[i]);
    mean = block_sum(mean, 1) / static_cast<float>(k);
  }
  float squares = 0;
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const float x = to_float(row[i]) - mean;
    squares = fmaf(x, x, squares);
  }
  const float factor = rsqrtf(block_sum(squares, 0) / static_cast<float>(k) + epsilon);
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const float x = (to_float(row[i]) - mean) * factor * to_float(weight[i]);
    out[i] = from_float<T>(bias == nullptr ? x : x + to_float(bias[i]));
  }
}

// A load that stays ahead of the wait for the predecessor: the compiler moves those through the read-only cache behind it.
__device__ __forceinline__ uint4 load_in_order(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}

// use(pair) for the four pairs of a vector.
template <typename T, typename Use>
__device__ __forceinline__ void each_pair(uint4 vector, Use use) {
  for (uint32_t pair : {vector.x, vector.y, vector.z, vector.w}) use(unpack2<T>(pair));
}

// The same where rows are whole vectors and lie in a block's registers: decoding waits for each of these kernels, so that
// what counts is how long one row takes. The norm's weight and bias are there before the row is.
template <typename T, Norm Kind, int Vectors>
__global__ void __launch_bounds__(kThreads)
    normalise_vectors_kernel(const uint4* a, int64_t a_stride, const uint4* weight, const uint4* bias, uint4* y,
                             int vectors, float epsilon) {
  release_successor();
  const uint4* const row = a + blockIdx.x * a_stride;
  uint4* const out = y + static_cast<int64_t>(blockIdx.x) * vectors;
  const float size = static_cast<float>(vectors * kVector);
  constexpr uint4 kNothing = {0, 0, 0, 0};
  uint4 w[Vectors], b[Vectors], x[Vectors];
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    w[v] = i < vectors ? load_in_order(weight + i) : kNothing;
    b[v] = i < vectors && bias != nullptr ? load_in_order(bias + i) : kNothing;
  }
  wait_for_predecessor();
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    x[v] = i < vectors ? row[i] : kNothing;
  }
  float mean = 0;
  if constexpr (Kind == Norm::layer) {
#pragma unroll
    for (int v = 0; v < Vectors; ++v) each_pair<T>(x[v], [&mean](float2 both) { mean += both.x + both.y; });
    mean = block_sum(mean, 1) / size;
  }
  float squares = 0;
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    if (Kind == Norm::layer && threadIdx.x + v * kThreads >= vectors) continue;  // nothing less the mean is not nothing
    each_pair<T>(x[v], [&squares, mean](float2 both) {
      both.x -= mean, both.y -= mean;
      squares = fmaf(both.x, both.x, fmaf(both.y, both.y, squares));
    });
  }
  const float factor = rsqrtf(block_sum(squares, 0) / size + epsilon);
  const auto scaled = [factor, mean](uint32_t pair, uint32_t by, uint32_t plus) {
    const float2 values = unpack2<T>(pair), weights = unpack2<T>(by), added = unpack2<T>(plus);
    return pack2<T>(fmaf((values.x - mean) * factor, weights.x, added.x),
                    fmaf((values.y - mean) * factor, weights.y, added.y));
  };
#pragma unroll
  for (int v = 0; v < Vectors; ++v) {
    const int i = threadIdx.x + v * kThreads;
    if (i < vectors)
      out[i] = make_uint4(scaled(x[v].x, w[v].x, b[v].x), scaled(x[v].y, w[v].y, b[v].y),
                          scaled(x[v].z, w[v].z, b[v].z), scaled(x[v].w, w[v].w, b[v].w));
  }
}

template <typename T, Norm Kind>
Status launch_kind(const GemmParams& p, void* y, cudaStream_t stream) {
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const OverlappedLaunch launched(p.problem.m, kThreads, 0, stream, device);
  const int64_t vectors = p.problem.k / kVector;
  const int64_t row_bytes = p.problem.k * static_cast<int64_t>(sizeof(T));
  if (rows_aligned_16(p.a, p.problem.a_row_stride * 2) && rows_aligned_16(p.norm_weight, row_bytes) &&
      rows_aligned_16(p.norm_bias, row_bytes) && vectors <= 4 * kThreads) {
    const auto kernel = vectors <= kThreads       ? normalise_vectors_kernel<T, Kind, 1>
                        : vectors <= 2 * kThreads ? normalise_vectors_kernel<T, Kind, 2>
                                                  : normalise_vectors_kernel<T, Kind, 4>;
    return check_gpu(cudaLaunchKernelEx(&launched.config, kernel, static_cast<const uint4*>(p.a),
                                        p.problem.a_row_stride / kVector,
                                        static_cast<const uint4*>(p.norm_weight),
                                        static_cast<const uint4*>(p.norm_bias), static_cast<uint4*>(y),
                                        static_cast<int>(vectors), p.problem.norm_epsilon),
                     "normalise");
  }
  return check_gpu(cudaLaunchKernelEx(&launched.config, normalise_kernel<T, Kind>, static_cast<const T*>(p.a),
                                      p.problem.a_row_stride, static_cast<const T*>(p.norm_weight),
                                      static_cast<const T*>(p.norm_bias), static_cast<T*>(y),
                                      static_cast<int>(p.problem.k), p.problem.norm_epsilon),
                   "normalise");
}

template <typename T>
Status launch(const GemmParams& p, void* y, cudaStream_t stream) {
  return p.problem.norm == Norm::layer ? launch_kind<T, Norm::layer>(p, y, stream)
                                       : launch_kind<T, Norm::rms>(p, y, stream);
}

}  // namespace

size_t normalise_bytes(const GemmProblem& p) {
  return p.has_norm() ? static_cast<size_t>(ceil_div(p.m * p.k * dtype_size(p.dtype), 256)) * 256 : 0;
}

Status normalise(const GemmParams& params, void** workspace, cudaStream_t stream, GemmParams* out) {
  *out = params;
  const size_t bytes = normalise_bytes(params.problem);
  if (bytes == 0) return {};
  if (*workspace == nullptr)
    return invalid_argument("FdppFlatGemm: workspace is null, expected at least " + std::to_string(bytes) + " bytes");
  FDPP_RETURN_IF_ERROR(params.problem.dtype == DType::f16 ? launch<__half>(params, *workspace, stream)
                                                          : launch<__nv_bfloat16>(params, *workspace, stream));
  out->a = *workspace;
  out->norm_weight = out->norm_bias = nullptr;
  out->problem.norm = Norm::none;
  out->problem.a_row_stride = out->problem.k;
  *workspace = static_cast<char*>(*workspace) + bytes;
  return {};
}

}  // namespace fdpp
