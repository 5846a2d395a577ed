// The end of every CUDA GEMM kernel: bias and residual in float32, then the one rounding.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/gemm/params.h"

namespace fdpp {

template <typename T>
struct Epilogue {
  const T* bias;      // [N] or null
  const T* residual;  // [M, N] or null
  T* y;               // [M, N]
  int64_t n;

  explicit Epilogue(const GemmParams& params)
      : bias(static_cast<const T*>(params.bias)),
        residual(static_cast<const T*>(params.residual)),
        y(static_cast<T*>(params.y)),
        n(params.problem.n) {}

  __device__ __forceinline__ void store(int64_t row, int64_t column, float sum) const {
    const int64_t i = row * n + column;
    if (bias != nullptr) sum += to_float(bias[column]);
    if (residual != nullptr) sum += to_float(residual[i]);
    y[i] = from_float<T>(sum);
  }
};

// Whether rows of `k` 16-bit elements from `p` on all start at 16 bytes.
inline bool rows_aligned_16(const void* p, int64_t k) { return k % 8 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace fdpp
