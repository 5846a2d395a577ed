// Y = A · Bᵀ (+ bias) (+ residual) for few rows of A, over a Vec of any width. Include after a simd_*.h.
//
// Both operands have K contiguous, so a register block of A rows by B rows keeps one Vec of partial sums for each pair
// and adds up its lanes at the end. B streams through once; a block of its rows stays in the first-level cache while all
// rows of A, which the second level holds, pass by.
#pragma once

#include <cstdint>

#include "kernels/common/parallel.h"
#include "kernels/common/simd_math.h"
#include "kernels/gemm/cpu/kernels.h"

namespace fdpp {
namespace {

constexpr int64_t kTaskBytes = 64 * 1024;  // of B: enough to amortise a task, little enough to balance threads

// out[m][n] = a[m] · b[n] for M rows of A, `a_stride` apart, and N rows of B. What lies `ahead` of B is prefetched.
template <int M, int N, typename W>
inline void dot_block(const float* a, int64_t a_stride, const W* const* b, int64_t k, int64_t ahead,
                      float (*out)[4]) {
  Vec sums[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sums[m][n] = set(0);
  }
  int64_t i = 0;
  for (; i + kWidth <= k; i += kWidth) {
    Vec w[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      w[n] = load(b[n] + i);
      prefetch(b[n] + i + ahead);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      Vec x = load(a + m * a_stride + i);
      keep_in_register(x);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sums[m][n] = fma(x, w[n], sums[m][n]);
    }
  }
  if (i < k) {
    const int tail = static_cast<int>(k - i);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const Vec w = load_first(b[n] + i, tail);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sums[m][n] = fma(load_first(a + m * a_stride + i, tail), w, sums[m][n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    store_sums(out[m], sums[m][0], N > 1 ? sums[m][N > 1 ? 1 : 0] : set(0), N > 2 ? sums[m][N > 2 ? 2 : 0] : set(0),
               N > 3 ? sums[m][N > 3 ? 3 : 0] : set(0));
  }
}

// Rows of B side by side with M rows of A: as many as registers allow, four at most.
constexpr int columns_beside(int m) { return kAccumulators / m < 4 ? kAccumulators / m : 4; }

// How many rows of A a register block takes at most.
struct Gemv {
  static constexpr int kMostRows = static_cast<int>(kGemvRows);
};
struct Flat {
  static constexpr int kMostRows = kAccumulators / 3 < 8 ? kAccumulators / 3 : 8;
};

template <typename W>
class Gemm {
 public:
  explicit Gemm(const GemmParams& params) : params_(params), p_(params.problem) {}

  template <typename Shape>
  void run(const HostRuntime* host) const {
    // A multiple of 12 is one of all block widths.
    const int64_t rows = (kTaskBytes / (p_.k * static_cast<int64_t>(sizeof(W))) + 11) / 12 * 12;
    const int64_t per_task = rows > 0 ? rows : 12;
    const int64_t chunks = (p_.m + Shape::kMostRows - 1) / Shape::kMostRows;
    parallel_for(host, static_cast<size_t>((p_.n + per_task - 1) / per_task),
                 static_cast<double>(p_.m) * static_cast<double>(p_.n) * static_cast<double>(p_.k), [&](size_t task) {
                   const int64_t begin = static_cast<int64_t>(task) * per_task;
                   const int64_t end = begin + per_task < p_.n ? begin + per_task : p_.n;
                   columns<Shape::kMostRows>(static_cast<int>((p_.m + chunks - 1) / chunks), begin, end);
                 });
  }

 private:
  // Columns [begin, end) of Y with blocks of `height` rows, 0 < height <= M.
  template <int M>
  void columns(int height, int64_t begin, int64_t end) const {
    if constexpr (M > 1) {
      if (height < M) return columns<M - 1>(height, begin, end);
    }
    constexpr int N = columns_beside(M);
    for (int64_t n = begin; n < end; n += N) {
      const W* b[N];  // the last row stands in for those beyond it, whose results are dropped
      for (int i = 0; i < N; ++i)
        b[i] = static_cast<const W*>(params_.b) + (n + i < end ? n + i : end - 1) * p_.k;
      const int count = static_cast<int>(end - n < N ? end - n : N);
      int64_t m = 0;
      for (; m + M <= p_.m; m += M) block<M, N>(m, n, count, b);
      for (; m < p_.m; ++m) block<1, N>(m, n, count, b);
    }
  }

  template <int M, int N>
  void block(int64_t first_row, int64_t n, int count, const W* const* b) const {
    float out[M][4];
    dot_block<M, N>(static_cast<const float*>(params_.a) + first_row * p_.k, p_.k, b, p_.k, N * p_.k, out);
    const float* bias = static_cast<const float*>(params_.bias);
    const float* residual = static_cast<const float*>(params_.residual);
    for (int m = 0; m < M; ++m) {
      const int64_t at = (first_row + m) * p_.n + n;
      for (int i = 0; i < count; ++i) {
        float y = out[m][i];
        if (bias != nullptr) y += bias[n + i];
        if (residual != nullptr) y += residual[at + i];
        static_cast<float*>(params_.y)[at + i] = y;
      }
    }
  }

  const GemmParams& params_;
  const GemmProblem& p_;
};

template <typename Shape>
inline void run_gemm_kernel(const GemmParams& params, const HostRuntime* host) {
  switch (params.problem.weight_dtype) {
    case DType::f16: return Gemm<Half>(params).run<Shape>(host);
    case DType::bf16: return Gemm<Bfloat>(params).run<Shape>(host);
    default: return Gemm<float>(params).run<Shape>(host);
  }
}

inline void widen(const void* from, DType dtype, float* to, int64_t count) {
  if (dtype == DType::f16)
    convert(static_cast<const Half*>(from), to, count);
  else
    convert(static_cast<const Bfloat*>(from), to, count);
}

}  // namespace
}  // namespace fdpp
