// Float vectors over AVX2 with FMA and F16C. See simd_scalar.h for what each function means.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/common/eight_bit.h"
#include "kernels/common/float16.h"

namespace fdpp {
namespace {

constexpr int kWidth = 8;
constexpr int kAccumulators = 12;

using Vec = __m256;

inline Vec set(float x) { return _mm256_set1_ps(x); }
inline Vec iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Vec load(const Bfloat* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const Int8* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// At a Half's place the bits are worth 2^-8 of what they were; NaN becomes all ones, which is a Half's.
inline Vec load(const Float8* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i half = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, _mm_set1_epi16(0x3f80)), _mm_set1_epi16(0x3f80));
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(half, nan)), set(256));
}

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
template <typename T>
inline Vec load_first(const T* p, int n) {
  T lanes[kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store(Half* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(Int8* p, Vec v) {
  const Vec clamped = _mm256_min_ps(_mm256_max_ps(v, set(-128)), set(127));
  const __m256i wide = _mm256_cvtps_epi32(clamped);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline void store(Float8* p, Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < kWidth; ++i) from_float(lanes[i], p + i);
}
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  T lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

inline Vec round_to_integer(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec v, Vec n) {
  const __m256i exponent = _mm256_max_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(-127));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(v, _mm256_castsi256_ps(power));
}

struct Levels {
  Vec scale, offset;
};
inline Levels levels(float scale, float zero) { return {set(scale), set(-scale * zero)}; }
inline Vec nibbles(const uint8_t* p, __m256i shift) {
  int word;
  std::memcpy(&word, p, sizeof(word));
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word), shift), _mm256_set1_epi32(15)));
}
inline Vec decode(const Levels& block, const uint8_t* words, int64_t k) {
  return fma(nibbles(words + k / 2, _mm256_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28)), block.scale, block.offset);
}
inline Vec load_nibbles(const uint8_t* p, int n) {
  uint8_t bytes[kWidth / 2] = {};
  if (n == kWidth)
    std::memcpy(bytes, p, sizeof(bytes));
  else
    for (int i = 0; 2 * i < n; ++i) bytes[i] = p[i];
  return nibbles(bytes, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
}

struct Words {
  __m256i low, high;
};
inline Words load_words(const uint8_t* p, int n) {
  const __m256i words = n == kWidth ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                    : _mm256_maskload_epi32(reinterpret_cast<const int*>(p), first_lanes(n));
  const __m256i half = _mm256_set1_epi8(15);
  return {_mm256_and_si256(words, half), _mm256_and_si256(_mm256_srli_epi32(words, 4), half)};
}
inline void split_for_words(const Int8* x, Int8* low, Int8* high) {
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15);
  const __m128i split = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), order);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), split);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_unpackhi_epi64(split, split));
}
inline Vec dot(const Words& words, const Int8* x) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 4 * kWidth));
#if defined(__AVXVNNI__)
  const __m256i lows = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), words.low, low);
  const __m256i sums = _mm256_dpbusd_avx_epi32(lows, words.high, high);
#else
  // Four products of 15 by 127 fit 16 bits.
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(words.low, low), _mm256_maddubs_epi16(words.high, high));
  const __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
  return _mm256_cvtepi32_ps(sums);
}
inline Vec spread(const float* p, int n, int shift) {
  const __m256i which = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), shift);
  return _mm256_permutevar8x32_ps(_mm256_maskload_ps(p, first_lanes(n)), which);
}

inline __m128 fold(Vec v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
inline float max_of(Vec v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline float sum_of(Vec v) {
  __m128 s = fold(v);
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  _mm_storeu_ps(p, _mm_hadd_ps(_mm_hadd_ps(fold(a), fold(b)), _mm_hadd_ps(fold(c), fold(d))));
}

inline void keep_in_register(Vec& v) { asm("" : "+x"(v)); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace fdpp
