// Float vectors over AVX-512 (F, BW, VL, DQ). See simd_scalar.h for what each function means.
#pragma once

#include <immintrin.h>

#include "kernels/common/eight_bit.h"
#include "kernels/common/float16.h"

namespace fdpp {
namespace {

constexpr int kWidth = 16;
constexpr int kAccumulators = 24;

using Vec = __m512;

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec iota() {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec widen(__m256i bfloats) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloats), 16));
}
inline Vec load(const Bfloat* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec load(const Int8* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// At a Half's place the bits are worth 2^-8 of what they were; NaN becomes all ones, which is a Half's.
inline Vec load(const Float8* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, _mm256_set1_epi16(0x3f80)), _mm256_set1_epi16(0x3f80));
  return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(half, nan)), set(256));
}

inline Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Vec load_first(const Half* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
inline Vec load_first(const Bfloat* p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
template <typename T>
inline Vec load_first(const T* p, int n) {
  T lanes[kWidth] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

inline __m256i narrow(Vec v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void store(Half* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
inline void store(Int8* p, Vec v) {
  const Vec clamped = _mm512_min_ps(_mm512_max_ps(v, set(-128)), set(127));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(clamped)));
}
inline void store(Float8* p, Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < kWidth; ++i) from_float(lanes[i], p + i);
}
inline void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
inline void store_first(Half* p, Vec v, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(v)); }
template <typename T>
inline void store_first(T* p, Vec v, int n) {
  T lanes[kWidth];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }

inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}

inline Vec round_to_integer(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }

using Levels = Vec;
inline Levels levels(float scale, float zero) { return mul(sub(iota(), set(zero)), set(scale)); }
// The first word in the lower half, the second in the upper one.
inline __m512i two_words(__m128i words) {
  const __m512i which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_epi32(which, _mm512_castsi128_si512(words));
}
// Every lane shifts its number down; the permutation looks at the lowest four bits alone.
inline Vec decode(const Levels& block, const uint8_t* words, int64_t k) {
  const __m512i shift = _mm512_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28, 0, 16, 4, 20, 8, 24, 12, 28);
  const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(words + k / 2));
  return _mm512_permutexvar_ps(_mm512_srlv_epi32(two_words(both), shift), block);
}
inline Vec load_nibbles(const uint8_t* p, int n) {
  const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes((n + 1) / 2), p);
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srlv_epi32(two_words(bytes), shift), _mm512_set1_epi32(15)));
}

struct Words {
  __m512i low, high;
};
inline Words load_words(const uint8_t* p, int n) {
  const __m512i words = n == kWidth ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first_lanes(n), p);
  const __m512i half = _mm512_set1_epi8(15);
  return {_mm512_and_si512(words, half), _mm512_and_si512(_mm512_srli_epi32(words, 4), half)};
}
inline void split_for_words(const Int8* x, Int8* low, Int8* high) {
  const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15);
  const __m128i split = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)), order);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), split);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_unpackhi_epi64(split, split));
}
inline Vec dot(const Words& words, const Int8* x) {
  const __m512i low = _mm512_loadu_si512(x), high = _mm512_loadu_si512(x + 4 * kWidth);
#if defined(__AVX512VNNI__)
  const __m512i lows = _mm512_dpbusd_epi32(_mm512_setzero_si512(), words.low, low);
  const __m512i sums = _mm512_dpbusd_epi32(lows, words.high, high);
#else
  // Four products of 15 by 127 fit 16 bits.
  const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(words.low, low), _mm512_maddubs_epi16(words.high, high));
  const __m512i sums = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
  return _mm512_cvtepi32_ps(sums);
}
inline Vec spread(const float* p, int n, int shift) {
  const __m512i which = _mm512_srli_epi32(_mm512_cvtps_epi32(iota()), static_cast<unsigned>(shift));
  return _mm512_permutexvar_ps(which, _mm512_maskz_loadu_ps(first_lanes(n), p));
}

inline float max_of(Vec v) { return _mm512_reduce_max_ps(v); }
inline float sum_of(Vec v) { return _mm512_reduce_add_ps(v); }
inline __m256 fold(Vec v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

inline void keep_in_register(Vec& v) { asm("" : "+v"(v)); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace fdpp
