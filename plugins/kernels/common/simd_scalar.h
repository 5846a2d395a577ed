// Float vectors in plain C++, four lanes wide so that any compiler can map them to what the processor has; and the
// meaning of the functions that the other simd_*.h share. A kernel file includes exactly one of them.
#pragma once

#include <cstdint>
#include <cstring>

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

// ---- 4-bit numbers, in words of eight as fdpp/gemm.h describes them ----

// Where number k of a word lies.
inline int nibble_shift(int k) { return 4 * (k / 2 + k % 2 * 4); }
inline uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// The values that the 16 numbers of a block stand for.
struct Levels {
  float scale, zero;
};
inline Levels levels(float scale, float zero) { return {scale, zero}; }
// The values of a block's numbers k to k + kWidth - 1; kWidth divides k, `words` is where number 0 lies.
inline Vec decode(const Levels& block, const uint8_t* words, int64_t k) {
  const uint32_t word = word_at(words + k / 8 * 4);
  return each([&](int i) {
    return (static_cast<float>(word >> nibble_shift(static_cast<int>(k % 8) + i) & 15) - block.zero) * block.scale;
  });
}
// n numbers that are packed two a byte, the low half first, 0 < n <= kWidth. Touches their bytes alone.
inline Vec load_nibbles(const uint8_t* p, int n) {
  return each([=](int i) { return i < n ? static_cast<float>(p[i / 2] >> i % 2 * 4 & 15) : 0; });
}

// kWidth words, ready for products with a row of 8-bit integers.
struct Words {
  uint32_t lane[kWidth];
};
// Touches n words alone, 0 < n <= kWidth; the others are 0.
inline Words load_words(const uint8_t* p, int n) {
  Words words;
  for (int i = 0; i < kWidth; ++i) words.lane[i] = i < n ? word_at(p + 4 * i) : 0;
  return words;
}
// What 16 integers that meet two words are to become: the first eight bytes meet the low halves of the words' bytes,
// the last eight the high ones.
inline void split_for_words(const Int8* x, Int8* low, Int8* high) {
  constexpr int kLow[] = {0, 4, 1, 5}, kHigh[] = {2, 6, 3, 7};
  for (int i = 0; i < 8; ++i) {
    low[i] = x[i / 4 * 8 + kLow[i % 4]];
    high[i] = x[i / 4 * 8 + kHigh[i % 4]];
  }
}
// For each word the sum of its eight numbers' products with integers: x holds those of the low halves of all kWidth
// words, then those of the high halves.
inline Vec dot(const Words& words, const Int8* x) {
  return each([&](int i) {
    int sum = 0;
    for (int b = 0; b < 4; ++b) {
      const int byte = words.lane[i] >> 8 * b & 255;
      sum += (byte & 15) * x[4 * i + b].value + (byte >> 4) * x[4 * (kWidth + i) + b].value;
    }
    return static_cast<float>(sum);
  });
}
// Lane i is p[i >> shift] where that is one of the first n, which alone are touched, and 0 elsewhere; shift > 0.
inline Vec spread(const float* p, int n, int shift) {
  return each([=](int i) { return i >> shift < n ? p[i >> shift] : 0; });
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
