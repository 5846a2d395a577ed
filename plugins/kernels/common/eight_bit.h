// 8-bit storage types and their conversion in plain C++; the scales that go with them are the caller's. Internal
// linkage, as in float16.h.
#pragma once

#include <cstdint>

#include "kernels/common/float16.h"

namespace fdpp {

struct Int8 {
  int8_t value;
};
// e4m3fn: up to 448, NaN but no infinity.
struct Float8 {
  uint8_t bits;
};

namespace {

inline float to_float(Int8 x) { return static_cast<float>(x.value); }

inline float to_float(Float8 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80) << 24;
  const uint32_t exponent = (x.bits >> 3) & 0xf;
  const uint32_t mantissa = x.bits & 7;
  if ((x.bits & 0x7f) == 0x7f) return float_of(sign | 0x7fc00000);
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-9f));
  return float_of(sign | (exponent + 120) << 23 | mantissa << 20);
}

// Both round to nearest, ties to even, and saturate.
inline void from_float(float x, Int8* out) {
  x = x > -128 ? x : -128;
  x = x < 127 ? x : 127;
  out->value = static_cast<int8_t>((x + 0x1.8p23f) - 0x1.8p23f);
}

inline void from_float(float x, Float8* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 24) & 0x80;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t small;
  if (magnitude > 0x7f800000) {
    small = 0x7f;                                                        // NaN
  } else if (magnitude >= 0x43e00000) {
    small = 0x7e;                                                        // 448 and more
  } else if (magnitude < 0x3c800000) {
    small = bits_of(float_of(magnitude) + 0x1p14f) - 0x46800000;         // subnormal: 2^14's last bit is worth 2^-9
  } else {
    small = (magnitude + 0x7ffff + ((magnitude >> 20) & 1) - 0x3c000000) >> 20;
  }
  out->bits = static_cast<uint8_t>(sign | small);
}

}  // namespace
}  // namespace fdpp
