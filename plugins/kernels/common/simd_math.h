// Functions over Vec, accurate to about one unit in the last place. Include after a simd_*.h.
#pragma once

#include <cstdint>

namespace fdpp {
namespace {

constexpr float kLog2E = 1.44269504f;

// e^x for x below 88. Below the normal range: 0 or subnormal; -inf gives 0, NaN stays.
inline Vec exp(Vec x) {
  x = max(set(-110.0f), x);
  const Vec n = round_to_integer(mul(x, set(kLog2E)));
  // x - n ln 2, ln 2 in two parts: n times the first is exact.
  Vec r = fma(n, set(-0x1.63p-1f), x);
  r = fma(n, set(2.12194440e-4f), r);
  // Minimax for the relative error over |r| < ln(2) / 2.
  Vec p = set(1.38367421e-3f);
  p = fma(p, r, set(8.37489869e-3f));
  p = fma(p, r, set(4.16682325e-2f));
  p = fma(p, r, set(1.66664198e-1f));
  p = fma(p, r, set(4.99999911e-1f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  return times_power_of_two(p, n);
}

inline Vec tanh(Vec x) {
  const Vec magnitude = max(x, sub(set(0), x));
  const Vec e = exp(mul(magnitude, set(-2)));
  const Vec far = div(sub(set(1), e), add(set(1), e));
  // Near 0 the quotient above cancels: x + x^3 q(x^2), minimax over |x| < 0.625.
  const Vec u = mul(x, x);
  Vec q = set(2.147539286e-3f);
  q = fma(q, u, set(-8.182676509e-3f));
  q = fma(q, u, set(2.170296758e-2f));
  q = fma(q, u, set(-5.394720286e-2f));
  q = fma(q, u, set(1.333321035e-1f));
  q = fma(q, u, set(-3.333333135e-1f));
  const Vec near = fma(mul(q, u), x, x);
  return select_greater(magnitude, set(0.625f), select_greater(x, set(0), far, sub(set(0), far)), near);
}

inline Vec erf(Vec x) {
  const Vec magnitude = max(x, sub(set(0), x));
  // From 1 on: 1 - e^q(|x|); beyond 4, where float32 has 1 alone, as at 4. Least absolute error.
  const Vec bounded = select_greater(magnitude, set(4), set(4), magnitude);
  Vec q = set(1.87971891e-4f);
  q = fma(q, bounded, set(-2.96400813e-3f));
  q = fma(q, bounded, set(2.19064858e-2f));
  q = fma(q, bounded, set(-1.03256226e-1f));
  q = fma(q, bounded, set(-6.37964964e-1f));
  q = fma(q, bounded, set(-1.12720227f));
  q = fma(q, bounded, set(-3.12466058e-4f));
  const Vec far = sub(set(1), exp(q));
  // Below 1: x + x p(x^2), least relative error.
  const Vec u = mul(x, x);
  Vec p = set(7.85383818e-5f);
  p = fma(p, u, set(-8.01018672e-4f));
  p = fma(p, u, set(5.18832682e-3f));
  p = fma(p, u, set(-2.68538110e-2f));
  p = fma(p, u, set(1.12835854e-1f));
  p = fma(p, u, set(-3.76126260e-1f));
  p = fma(p, u, set(1.28379166e-1f));
  return select_greater(magnitude, set(1), select_greater(x, set(0), far, sub(set(0), far)), fma(p, x, x));
}

// How a part of an array is touched: a whole Vec of it, or its last few elements.
struct AllLanes {
  template <typename T>
  Vec load(const T* p) const { return fdpp::load(p); }
  template <typename T>
  void store(T* p, Vec v) const { fdpp::store(p, v); }
};
struct FirstLanes {
  int count;
  template <typename T>
  Vec load(const T* p) const { return load_first(p, count); }
  template <typename T>
  void store(T* p, Vec v) const { store_first(p, v, count); }
};

// part(i, lanes) for each Vec of an array of n elements, i being its first.
template <typename Part>
inline void each_vector(int64_t n, const Part& part) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) part(i, AllLanes{});
  if (i < n) part(i, FirstLanes{static_cast<int>(n - i)});
}

// y[0..n) = x[0..n), converted.
template <typename From, typename To>
inline void convert(const From* x, To* y, int64_t n) {
  each_vector(n, [=](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(x + i)); });
}

}  // namespace
}  // namespace fdpp
