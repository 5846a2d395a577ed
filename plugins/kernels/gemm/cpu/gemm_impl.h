// Y = act(norm(A) · Bᵀ (+ bias)) (+ residual) for few rows of A, over a Vec of any width. Include after a simd_*.h.
//
// B streams through once; a block of its rows stays in the first-level cache while all rows of A, which the second
// level holds, pass by.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/gemm/cpu/epilogue_impl.h"
#include "kernels/gemm/cpu/weights_impl.h"

namespace fdpp {
namespace {

// What a task has of B: enough to amortise it, little enough to balance threads.
constexpr int64_t kLeastTaskBytes = 16 * 1024, kMostTaskBytes = 64 * 1024, kTasks = 32;

// How many rows of A a register block takes at most.
struct Gemv {
  static constexpr int kMostRows = static_cast<int>(kGemvRows);
};
struct Flat {
  static constexpr int kMostRows = kAccumulators / 3 < 8 ? kAccumulators / 3 : 8;
};

template <typename Weights>
class Gemm {
 public:
  Gemm(const GemmParams& params, const GemmScratch& scratch, const Weights& weights)
      : params_(params), p_(params.problem), up_(scratch.up), weights_(weights) {}

  template <typename Shape>
  void run(const HostRuntime* host) const {
    const int64_t share = p_.n * weights_.row_bytes() / kTasks;
    const int64_t bytes = share < kLeastTaskBytes ? kLeastTaskBytes : share > kMostTaskBytes ? kMostTaskBytes : share;
    // A multiple of 12 is one of all block widths.
    const int64_t rows = (bytes / weights_.row_bytes() + 11) / 12 * 12;
    const int64_t per_task = rows > 0 ? rows : 12;
    const int64_t chunks = (p_.m + Shape::kMostRows - 1) / Shape::kMostRows;
    const int height = static_cast<int>((p_.m + chunks - 1) / chunks);
    float* const y = static_cast<float*>(params_.y);
    const bool gated = p_.activation == Activation::silu_mul;
    const bool raw = !p_.has_bias && !p_.has_residual && p_.activation == Activation::none;
    parallel_for(host, static_cast<size_t>((p_.n + per_task - 1) / per_task),
                 static_cast<double>(p_.m) * static_cast<double>(p_.weight_rows()) * static_cast<double>(p_.k),
                 [&](size_t task) {
                   const int64_t begin = static_cast<int64_t>(task) * per_task;
                   const int64_t end = begin + per_task < p_.n ? begin + per_task : p_.n;
                   columns<Shape::kMostRows>(height, 0, begin, end, y);
                   if (gated) columns<Shape::kMostRows>(height, p_.n, begin, end, up_);
                   if (!raw)
                     finish_rows(params_, begin, end - begin, y + begin, gated ? up_ + begin : nullptr, p_.n, 0, p_.m);
                 });
  }

 private:
  // Rows of B side by side with M rows of A: as many as registers allow, four at most.
  static constexpr int columns_beside(int m) { return Weights::kSums / m < 4 ? Weights::kSums / m : 4; }

  // Columns [begin, end) of the product with B's rows from `row` on, with blocks of `height` rows, 0 < height <= M.
  template <int M>
  void columns(int height, int64_t row, int64_t begin, int64_t end, float* to) const {
    if constexpr (M > 1) {
      if (height < M) return columns<M - 1>(height, row, begin, end, to);
    }
    // The N rows side by side are neighbours, or a stride apart: then memory sees N streams in pages of their own.
    constexpr int N = columns_beside(M);
    const int64_t stride = Weights::kApart ? (end - begin + N - 1) / N : 1;
    const int64_t last = Weights::kApart ? begin + stride : end;
    for (int64_t n = begin; n < last; n += Weights::kApart ? 1 : N) {
      int64_t at[N], rows[N];
      int count = 0;  // the last row stands in for those beyond it, whose results are dropped
      for (int i = 0; i < N; ++i) {
        at[i] = n + i * stride < end ? n + i * stride : end - 1;
        rows[i] = row + at[i];
        count += n + i * stride < end;
      }
      int64_t m = 0;
      for (; m + M <= p_.m; m += M) block<M, N>(m, rows, at, count, to);
      for (; m < p_.m; ++m) block<1, N>(m, rows, at, count, to);
    }
  }

  // Rows of A from `first` on and `rows` of B: Y's columns `at`, the first `count` of them.
  template <int M, int N>
  void block(int64_t first, const int64_t* rows, const int64_t* at, int count, float* to) const {
    float out[M][4];
    weights_.template products<M, N>(first, rows, out);
    for (int m = 0; m < M; ++m)
      for (int i = 0; i < count; ++i) to[(first + m) * p_.n + at[i]] = out[m][i];
  }

  const GemmParams& params_;
  const GemmProblem& p_;
  float* const up_;
  const Weights weights_;
};

// use(weights) for the weights that the problem has, in float32 arithmetic.
template <typename Use>
inline void with_weights(const GemmParams& params, const Use& use) {
  switch (params.problem.weight_format) {
    case WeightFormat::f32: return use(PlainWeights<float>(params));
    case WeightFormat::f16: return use(PlainWeights<Half>(params));
    case WeightFormat::bf16: return use(PlainWeights<Bfloat>(params));
    case WeightFormat::int8: return use(PlainWeights<Int8>(params));
    case WeightFormat::fp8: return use(PlainWeights<Float8>(params));
    case WeightFormat::int4: return use(Int4Weights(params));
  }
}

// The call with A as the product takes it.
inline GemmParams with_norm(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  GemmParams normed = params;
  if (params.problem.has_norm()) {
    normalise(params, scratch.a, host);
    normed.a = scratch.a;
    normed.problem.a_row_stride = params.problem.k;
  }
  return normed;
}

// int4 weights and A as integers.
template <typename Shape>
inline void run_int8_kernel(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  const GemmParams normed = with_norm(params, scratch, host);
  round_rows(normed, scratch, host);
  Gemm<Int4WeightsInt8>(normed, scratch, Int4WeightsInt8(normed, scratch)).template run<Shape>(host);
}

template <typename Shape>
inline void run_gemm_kernel(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  if (scratch.integers != nullptr) return run_int8_kernel<Shape>(params, scratch, host);
  const GemmParams normed = with_norm(params, scratch, host);
  with_weights(normed, [&](const auto& weights) {
    Gemm<std::decay_t<decltype(weights)>>(normed, scratch, weights).template run<Shape>(host);
  });
}

inline void dequantise(const GemmParams& params, int64_t first, int64_t rows, float* to, const HostRuntime* host) {
  constexpr int64_t kTaskElements = 1 << 14;
  const int64_t k = params.problem.k;
  const int64_t per_task = kTaskElements / k > 0 ? kTaskElements / k : 1;
  with_weights(params, [&](const auto& weights) {
    parallel_for(host, static_cast<size_t>((rows + per_task - 1) / per_task), static_cast<double>(rows * k),
                 [&](size_t task) {
                   const int64_t begin = static_cast<int64_t>(task) * per_task;
                   const int64_t end = begin + per_task < rows ? begin + per_task : rows;
                   for (int64_t row = begin; row < end; ++row) weights.dequantise(first + row, to + row * k);
                 });
  });
}

inline void finish(const GemmParams& params, int64_t first, int64_t columns, const float* product, const float* up,
                   int64_t stride, const HostRuntime* host) {
  const int64_t m = params.problem.m;
  parallel_for(host, static_cast<size_t>(m), static_cast<double>(m * columns), [&](size_t row) {
    const int64_t begin = static_cast<int64_t>(row);
    finish_rows(params, first, columns, product, up, stride, begin, begin + 1);
  });
}

}  // namespace
}  // namespace fdpp
