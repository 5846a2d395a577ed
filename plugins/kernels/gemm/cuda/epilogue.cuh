// The end of every CUDA GEMM kernel: scale, bias, activation and residual in float32, then the one rounding.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/gemm/params.h"

namespace fdpp {

// Not inline: the loops of a kernel are to stay in the instruction cache.
static __device__ __noinline__ float activated(float x, Activation activation) {
  switch (activation) {
    case Activation::relu: return x != x ? x : fmaxf(x, 0.0f);
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::silu:
    case Activation::silu_mul: return x / (1.0f + __expf(-x));
    case Activation::none: break;
  }
  return x;
}

template <typename T>
struct Epilogue {
  const T* scales;    // [R] or [1], of a whole row of B; null where weights have none or blocks of K have their own
  const T* bias;      // [R] or null
  const T* residual;  // [M, N] or null
  T* y;               // [M, N]
  int64_t n;
  int scale_stride;   // 0 where all rows share a scale
  Activation activation;

  explicit Epilogue(const GemmParams& params)
      : scales(params.problem.blocks() == 0 ? static_cast<const T*>(params.scales) : nullptr),
        bias(static_cast<const T*>(params.bias)),
        residual(static_cast<const T*>(params.residual)),
        y(static_cast<T*>(params.y)),
        n(params.problem.n),
        scale_stride(params.problem.one_scale ? 0 : 1),
        activation(params.problem.activation) {}

  // Row `r` of B's part in a token: scaled and with its bias.
  __device__ __forceinline__ float value(int64_t r, float sum) const {
    if (scales != nullptr) sum *= to_float(scales[r * scale_stride]);
    if (bias != nullptr) sum += to_float(bias[r]);
    return sum;
  }

  __device__ __forceinline__ void put(int64_t row, int64_t column, float result) const {
    const int64_t i = row * n + column;
    if (residual != nullptr) result += to_float(residual[i]);
    y[i] = from_float<T>(result);
  }

  __device__ __forceinline__ void store(int64_t row, int64_t column, float sum) const {
    const float result = value(column, sum);
    put(row, column, activation == Activation::none ? result : activated(result, activation));
  }
  // silu_mul: `gate` and `up` are the sums of rows `column` and `column` + N of B.
  __device__ __forceinline__ void store_gated(int64_t row, int64_t column, float gate, float up) const {
    put(row, column, activated(value(column, gate), Activation::silu) * value(column + n, up));
  }
};

// Whether rows of `row_bytes` from `p` on all start at 16 bytes.
inline bool rows_aligned_16(const void* p, int64_t row_bytes) {
  return row_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace fdpp
