// Weights as a multiply on tensor cores takes them: how 16 bytes of a row of B become fragments of m16n8k16.
//
// A product may sum over K in any order as long as both operands agree on it. So lane (g, t) = (lane / 4, lane % 4) takes
// 16 bytes of rows g and g + 8 of B, which hold kElements of K, and the same elements of token g: product p multiplies
// elements 4 p to 4 p + 3 of them all.
#pragma once

#include "fdpp/gemm.h"
#include "kernels/attention/cuda/eight_bit.cuh"
#include "kernels/common/mma.cuh"

namespace fdpp {

// The scales and zero points of a lane's 16 bytes.
struct BlockScale {
  uint32_t scale;  // twice, as a pair
  uint32_t zero;   // 0 to 15
};

template <typename T>
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t multiply2<__half>(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
template <>
__device__ __forceinline__ uint32_t multiply2<__nv_bfloat16>(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
  return d;
}

template <typename T, WeightFormat kFormat>
struct Weights {
  static constexpr bool kQuantised =
      kFormat == WeightFormat::int8 || kFormat == WeightFormat::fp8 || kFormat == WeightFormat::int4;
  static constexpr bool kBlocks = kFormat == WeightFormat::int4;
  static constexpr int kBits = kFormat == WeightFormat::int4 ? 4 : kQuantised ? 8 : 16;
  static constexpr int kElements = 128 / kBits;       // in 16 bytes
  static constexpr int kProducts = kElements / 4;     // that 16 bytes of both rows take part in
  static constexpr int kTokenVectors = kElements / 8;  // 16-byte vectors of A with the same elements

  // Elements 4 p to 4 p + 3 of 16 bytes, in two pairs.
  static __device__ __forceinline__ void fragment(const uint32_t (&words)[4], int p, const BlockScale& block,
                                                  uint32_t& first, uint32_t& second) {
    if constexpr (kBits == 16) {
      first = words[2 * p];
      second = words[2 * p + 1];
    } else if constexpr (kFormat == WeightFormat::int8) {
      widen4<T, int8_t>(words[p], first, second);
    } else if constexpr (kFormat == WeightFormat::fp8) {
      widen4<T, __nv_fp8_e4m3>(words[p], first, second);
    } else if constexpr (std::is_same_v<T, __half>) {
      // 0x6400 + u is 1024 + u, 0x6400 + 16 u is 1024 + 16 u: exact, and so are the differences.
      const uint32_t word = words[p / 2] >> (p % 2 * 8);
      const uint32_t low = (word & 0x000f000f) | 0x64006400, high = (word & 0x00f000f0) | 0x64006400;
      const uint32_t low_zero = 0x64006400 + block.zero * 0x00010001;  // 1024 + zero
      const uint32_t high_zero = 0xd400d400 + block.zero * 0x00100010;  // -(64 + zero)
      asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(first) : "r"(low), "r"(low_zero));
      asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(high), "r"(0x2c002c00), "r"(high_zero));
      first = multiply2<T>(first, block.scale);
      second = multiply2<T>(second, block.scale);
    } else {
      // 0x4300 + u is 128 + u.
      const uint32_t word = words[p / 2] >> (p % 2 * 8);
      const uint32_t low = (word & 0x000f000f) | 0x43004300, high = (word >> 4 & 0x000f000f) | 0x43004300;
      const uint32_t zero = 0xc300c300 + block.zero * 0x00010001;  // -(128 + zero)
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"(low), "r"(0x3f803f80), "r"(zero));
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(high), "r"(0x3f803f80), "r"(zero));
      first = multiply2<T>(first, block.scale);
      second = multiply2<T>(second, block.scale);
    }
  }
};

}  // namespace fdpp
