// 16-bit floating-point storage types and their conversion in plain C++. Internal linkage: these headers are compiled
// once for each instruction set, and no such copy may stand in for another.
#pragma once

#include <cstdint>
#include <cstring>

namespace fdpp {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

namespace {

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float to_float(float x) { return x; }

inline float to_float(Bfloat x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1f;
  const uint32_t mantissa = x.bits & 0x3ff;
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return float_of(sign | wide << 23 | mantissa << 13);
}

inline void from_float(float x, float* out) { *out = x; }

// Rounds to nearest, ties to even.
inline void from_float(float x, Half* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;                                                       // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;                                                       // rounds to infinity
  } else if (magnitude < 0x38800000) {
    half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;             // subnormal: 0.5's last bit is worth 2^-24
  } else {
    half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace
}  // namespace fdpp
