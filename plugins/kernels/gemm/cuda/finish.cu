#include "kernels/gemm/cuda/finish.h"

#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/gemm/cuda/epilogue.cuh"

namespace fdpp {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBytes = int64_t{64} << 20;
constexpr int64_t kMostFloatBytes = int64_t{16} << 20;  // stay in the L2
constexpr int64_t kLeastRows = 128, kMostRows = 32768;  // a library is slower with fewer; a grid is no higher

template <typename Sum>
__device__ __forceinline__ float2 load_pair(const Sum* at) {
  if constexpr (sizeof(Sum) == sizeof(float))
    return *reinterpret_cast<const float2*>(at);
  else
    return unpack2<Sum>(*reinterpret_cast<const uint32_t*>(at));
}

template <typename T, typename Sum>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Sum* __restrict__ sums, int64_t columns, Epilogue<T> out, int64_t first, bool gated) {
  const int64_t column = 2 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x), row = first + blockIdx.y;
  if (column >= out.n) return;
  const Sum* const of_row = sums + blockIdx.y * columns;
  const float2 sum = load_pair(of_row + column);
  if (gated) {
    const float2 up = load_pair(of_row + column + out.n);
    out.store_gated(row, column, sum.x, up.x);
    out.store_gated(row, column + 1, sum.y, up.y);
  } else {
    out.store(row, column, sum.x);
    out.store(row, column + 1, sum.y);
  }
}

template <typename T>
void launch(const GemmParams& params, const void* sums, int64_t first, int64_t rows, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n, 2 * kThreads)), static_cast<unsigned>(rows));
  const bool gated = p.activation == Activation::silu_mul;
  const Epilogue<T> out(params);
  if (finish_type(p) == DType::f32)
    finish_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const float*>(sums), p.weight_rows(), out, first, gated);
  else
    finish_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(sums), p.weight_rows(), out, first, gated);
}

}  // namespace

DType finish_type(const GemmProblem& p) {
  return p.m * p.weight_rows() * static_cast<int64_t>(sizeof(float)) <= kMostFloatBytes ? DType::f32 : p.dtype;
}

int64_t finish_rows(const GemmProblem& p) {
  const int64_t fit = kMostBytes / (p.weight_rows() * static_cast<int64_t>(dtype_size(finish_type(p))));
  return std::min(p.m, std::clamp(fit / kLeastRows * kLeastRows, kLeastRows, kMostRows));
}

size_t finish_bytes(const GemmProblem& p) {
  const int64_t bytes = finish_rows(p) * p.weight_rows() * static_cast<int64_t>(dtype_size(finish_type(p)));
  return static_cast<size_t>(ceil_div(bytes, 256) * 256);
}

Status finish(const GemmParams& params, const void* sums, int64_t first, int64_t rows, cudaStream_t stream) {
  if (params.problem.dtype == DType::f16)
    launch<__half>(params, sums, first, rows, stream);
  else
    launch<__nv_bfloat16>(params, sums, first, rows, stream);
  return check_launch("the end of cublaslt");
}

}  // namespace fdpp
