// Weights as a multiply on tensor cores takes them: how bytes of a row of B become fragments of m16n8k16.
//
// A product may sum over K in any order as long as both operands agree on it. So of every unit of 32 elements of K lane
// (g, t) = (lane / 4, lane % 4) takes elements 8 t to 8 t + 7, of rows g and g + 8 of B and of token g: the fragments of
// two products, of elements 8 t + 4 q to 8 t + 4 q + 3.
#pragma once

#include "fdpp/gemm.h"
#include "kernels/common/eight_bit.cuh"
#include "kernels/common/mma.cuh"

namespace fdpp {

// A constant that stays in a register: an instruction has room for one constant only.
template <uint32_t kValue>
__device__ __forceinline__ uint32_t register_of() {
  uint32_t value;
  asm("mov.b32 %0, %1;" : "=r"(value) : "n"(kValue));
  return value;
}
// (bits & kMask) | into, in one instruction.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t masked_into(uint32_t bits, uint32_t into) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(bits), "n"(kMask), "r"(into));
  return d;
}

template <typename T, WeightFormat kFormat>
struct Weights {
  static constexpr bool kBlocks = kFormat == WeightFormat::int4;
  static constexpr int kBits = kBlocks ? 4 : kFormat == WeightFormat::int8 || kFormat == WeightFormat::fp8 ? 8 : 16;
  static constexpr int kUnitBytes = 32 * kBits / 8;   // of a row
  static constexpr int kWords = kUnitBytes / 16;      // of a lane

  // int4: what stands in a fragment in place of q - 8 is q plus one of two offsets, one for each pair; a product with
  // `offsets`, the same for all rows, takes them away again, minus 8 in addition.
  static constexpr uint32_t kFirstOffset = std::is_same_v<T, __half> ? 0xe408e408 : 0xc308c308;   // -1032, -136
  static constexpr uint32_t kSecondOffset = std::is_same_v<T, __half> ? 0xd480d480 : 0xc308c308;  // -72, -136
  static constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00 : 0x3f803f80;

  // Elements 4 q to 4 q + 3 of a lane's 8, in two pairs.
  static __device__ __forceinline__ void fragment(const uint32_t (&words)[kWords], int q, uint32_t& first,
                                                  uint32_t& second) {
    if constexpr (kBits == 16) {
      first = words[2 * q];
      second = words[2 * q + 1];
    } else if constexpr (kFormat == WeightFormat::int8) {
      widen4<T, int8_t>(words[q], first, second);
    } else if constexpr (kFormat == WeightFormat::fp8) {
      widen4<T, __nv_fp8_e4m3>(words[q], first, second);
    } else {
      const uint32_t word = words[0] >> (8 * q);
      if constexpr (std::is_same_v<T, __half>) {
        first = masked_into<0x000f000f>(word, register_of<0x64006400>());   // 1024 + number
        second = masked_into<0x00f000f0>(word, register_of<0x54005400>());  // 64 + number
      } else {
        first = masked_into<0x000f000f>(word, register_of<0x43004300>());  // 128 + number
        second = masked_into<0x000f000f>(word >> 4, register_of<0x43004300>());
      }
    }
  }
};

}  // namespace fdpp
