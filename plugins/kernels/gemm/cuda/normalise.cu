#include "kernels/gemm/cuda/normalise.h"

#include "kernels/common/ceil_div.h"
#include "kernels/common/overlapped_launch.h"
#include "kernels/common/mma.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// A block a row: `a`, `y` [M, K].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(const T* a, const T* __restrict__ weight, T* y, int k, float epsilon) {
  release_successor();
  wait_for_predecessor();
  const T* const row = a + static_cast<int64_t>(blockIdx.x) * k;
  T* const out = y + static_cast<int64_t>(blockIdx.x) * k;
  float squares = 0;
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const float x = to_float(row[i]);
    squares = fmaf(x, x, squares);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  __shared__ float sums[kWarps];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) squares += sums[w];
  const float factor = rsqrtf(squares / static_cast<float>(k) + epsilon);
  for (int i = threadIdx.x; i < k; i += kThreads) out[i] = from_float<T>(to_float(row[i]) * factor * to_float(weight[i]));
}

template <typename T>
Status launch(const GemmParams& p, void* y, cudaStream_t stream) {
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  const OverlappedLaunch launched(p.problem.m, kThreads, 0, stream, device);
  return check_gpu(cudaLaunchKernelEx(&launched.config, normalise_kernel<T>, static_cast<const T*>(p.a),
                                      static_cast<const T*>(p.norm_weight), static_cast<T*>(y),
                                      static_cast<int>(p.problem.k), p.problem.norm_epsilon),
                   "normalise");
}

}  // namespace

size_t normalise_bytes(const GemmProblem& p) {
  return p.has_norm ? static_cast<size_t>(ceil_div(p.m * p.k * dtype_size(p.dtype), 256)) * 256 : 0;
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
  out->norm_weight = nullptr;
  out->problem.has_norm = false;
  *workspace = static_cast<char*>(*workspace) + bytes;
  return {};
}

}  // namespace fdpp
