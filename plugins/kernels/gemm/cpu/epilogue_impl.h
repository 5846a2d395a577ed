// What stands around the product: the norm of A's rows before it; bias, activation and residual after it.
// Include after a simd_*.h.
#pragma once

#include <math.h>

#include <cstdint>

#include "kernels/common/parallel.h"
#include "kernels/common/simd_math.h"
#include "kernels/gemm/cpu/kernels.h"

namespace fdpp {
namespace {

inline void normalise(const GemmParams& params, float* to, const HostRuntime* host) {
  const GemmProblem& p = params.problem;
  const float* weight = static_cast<const float*>(params.norm_weight);
  const float* bias = static_cast<const float*>(params.norm_bias);
  parallel_for(host, static_cast<size_t>(p.m), static_cast<double>(p.m) * static_cast<double>(p.k), [&](size_t row) {
    const float* x = static_cast<const float*>(params.a) + static_cast<int64_t>(row) * p.a_row_stride;
    float* y = to + static_cast<int64_t>(row) * p.k;
    const float size = static_cast<float>(p.k);
    if (p.norm == Norm::layer) {
      Vec sum = set(0);
      each_vector(p.k, [&](int64_t i, auto lanes) { sum = add(sum, lanes.load(x + i)); });
      const Vec mean = set(sum_of(sum) / size);
      each_vector(p.k, [&](int64_t i, auto lanes) { lanes.store(y + i, sub(lanes.load(x + i), mean)); });
      x = y;
    }
    Vec squares = set(0);
    each_vector(p.k, [&](int64_t i, auto lanes) {
      const Vec v = lanes.load(x + i);
      squares = fma(v, v, squares);
    });
    const Vec factor = set(1 / sqrtf(sum_of(squares) / size + p.norm_epsilon));
    each_vector(p.k, [&](int64_t i, auto lanes) {
      const Vec v = mul(mul(lanes.load(x + i), factor), lanes.load(weight + i));
      lanes.store(y + i, bias == nullptr ? v : add(v, lanes.load(bias + i)));
    });
  });
}

inline Vec silu(Vec x) {
  // e^-x stays finite; NaN stays NaN.
  return div(x, add(set(1), exp(sub(set(0), max(set(-87), x)))));
}
inline Vec gelu(Vec x) { return mul(mul(x, set(0.5f)), add(set(1), erf(mul(x, set(0.707106781f))))); }
inline Vec gelu_tanh(Vec x) {
  const Vec cubic = fma(mul(mul(x, x), x), set(0.044715f), x);
  return mul(mul(x, set(0.5f)), add(set(1), tanh(mul(cubic, set(0.797884561f)))));
}

// Columns [first, first + columns) of row m of Y; `product` and `up` are those columns of the products.
template <typename Activate>
inline void finish_row(const GemmParams& params, int64_t m, int64_t first, int64_t columns, const float* product,
                       const float* up, Activate activate) {
  const GemmProblem& p = params.problem;
  const float* bias = static_cast<const float*>(params.bias);
  const float* residual = static_cast<const float*>(params.residual);
  const int64_t at = m * p.n + first;
  each_vector(columns, [&](int64_t i, auto lanes) {
    Vec x = lanes.load(product + i);
    if (bias != nullptr) x = add(x, lanes.load(bias + first + i));
    x = activate(x);
    if (up != nullptr) {
      Vec gated = lanes.load(up + i);
      if (bias != nullptr) gated = add(gated, lanes.load(bias + p.n + first + i));
      x = mul(x, gated);
    }
    if (residual != nullptr) x = add(x, lanes.load(residual + at + i));
    lanes.store(static_cast<float*>(params.y) + at + i, x);
  });
}

// The same of rows [begin, end), from products `stride` apart.
inline void finish_rows(const GemmParams& params, int64_t first, int64_t columns, const float* product,
                        const float* up, int64_t stride, int64_t begin, int64_t end) {
  const auto rows = [&](auto activate) {
    for (int64_t m = begin; m < end; ++m)
      finish_row(params, m, first, columns, product + m * stride, up == nullptr ? nullptr : up + m * stride, activate);
  };
  switch (params.problem.activation) {
    case Activation::none: return rows([](Vec x) { return x; });
    case Activation::relu: return rows([](Vec x) { return max(set(0), x); });
    case Activation::gelu: return rows([](Vec x) { return gelu(x); });
    case Activation::gelu_tanh: return rows([](Vec x) { return gelu_tanh(x); });
    case Activation::silu:
    case Activation::silu_mul: return rows([](Vec x) { return silu(x); });
  }
}

}  // namespace
}  // namespace fdpp
