#include "kernels/gemm/cuda/finish.h"

#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/gemm/cuda/epilogue.cuh"

namespace fdpp {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBytes = int64_t{64} << 20;
constexpr int64_t kLeastRows = 128, kMostRows = 32768;  // a library is slower with fewer; a grid is no higher

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const float* __restrict__ sums, int64_t columns, Epilogue<T> out, int64_t first, bool gated) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= out.n) return;
  const float* const row = sums + blockIdx.y * columns;
  if (gated)
    out.store_gated(first + blockIdx.y, column, row[column], row[column + out.n]);
  else
    out.store(first + blockIdx.y, column, row[column]);
}

}  // namespace

int64_t finish_rows(const GemmProblem& p) {
  const int64_t fit = kMostBytes / (p.weight_rows() * static_cast<int64_t>(sizeof(float)));
  return std::min(p.m, std::clamp(fit / kLeastRows * kLeastRows, kLeastRows, kMostRows));
}

size_t finish_bytes(const GemmProblem& p) {
  const int64_t bytes = finish_rows(p) * p.weight_rows() * static_cast<int64_t>(sizeof(float));
  return static_cast<size_t>(ceil_div(bytes, 256) * 256);
}

Status finish(const GemmParams& params, const float* sums, int64_t first, int64_t rows, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kThreads)), static_cast<unsigned>(rows));
  const bool gated = p.activation == Activation::silu_mul;
  if (p.dtype == DType::f16)
    finish_kernel<__half><<<grid, kThreads, 0, stream>>>(sums, p.weight_rows(), Epilogue<__half>(params), first, gated);
  else
    finish_kernel<__nv_bfloat16>
        <<<grid, kThreads, 0, stream>>>(sums, p.weight_rows(), Epilogue<__nv_bfloat16>(params), first, gated);
  return check_launch("the end of cublaslt");
}

}  // namespace fdpp
