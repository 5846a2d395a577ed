// Float vectors in plain C++, four lanes wide so that any compiler can map them to what the processor has; and the
// meaning of the functions that the other simd_*.h share. A kernel file includes exactly one of them.
#pragma once

#include "kernels/common/eight_bit.h"
#include "kernels/common/float16.h"

namespace fdpp {
namespace {

constexpr int kWidth = 4;         // lanes of a Vec
constexpr int kAccumulators = 8;  // Vecs in which a kernel may keep sums without spilling

struct Vec {
  float lane[kWidth];
};

template <typename F>
inline Vec each(F f) {
  Vec v;
  for (int i = 0; i < kWidth; ++i) v.lane[i] = f(i);
  return v;
}

inline Vec set(float x) {
  return each([=](int) { return x; });
}
// 0, 1, 2, ...
inline Vec iota() {
  return each([](int i) { return static_cast<float>(i); });
}

// No alignment is needed. T: float, Half, Bfloat, Int8 or Float8.
template <typename T>
inline Vec load(const T* p) {
  return each([=](int i) { return to_float(p[i]); });
}
// Touches n elements alone, 0 < n <= kWidth; the other lanes are 0.
template <typename T>
inline Vec load_first(const T* p, int n) {
  return each([=](int i) { return i < n ? to_float(p[i]) : 0; });
}
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) from_float(v.lane[i], p + i);
}
template <typename T>
inline void store(T* p, Vec v) {
  store_first(p, v, kWidth);
}

inline Vec add(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a * b + c
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
// b where either is NaN.
inline Vec max(Vec a, Vec b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// a > b ? yes : no, lane by lane.
inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? yes.lane[i] : no.lane[i]; });
}

// For |v| below 2^22.
inline Vec round_to_integer(Vec v) {
  return each([&](int i) { return (v.lane[i] + 0x1.8p23f) - 0x1.8p23f; });
}
// v * 2^n for integers n below 128; results below the normal range may become 0.
inline Vec times_power_of_two(Vec v, Vec n) {
  return each([&](int i) {
    const int exponent = n.lane[i] > -127 ? static_cast<int>(n.lane[i]) : -127;
    return v.lane[i] * float_of(static_cast<uint32_t>(exponent + 127) << 23);
  });
}

inline float max_of(Vec v) {
  float m = v.lane[0];
  for (float x : v.lane) m = x > m ? x : m;
  return m;
}
inline float sum_of(Vec v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }
// The sum of each argument's lanes, to p[0..3].
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  p[0] = sum_of(a);
  p[1] = sum_of(b);
  p[2] = sum_of(c);
  p[3] = sum_of(d);
}

// Stops compilers from loading a value anew at each of its uses.
inline void keep_in_register(Vec&) {}
// Asks for the cache line at p, which need not be there, in the second level.
inline void prefetch(const void*) {}

}  // namespace
}  // namespace fdpp
