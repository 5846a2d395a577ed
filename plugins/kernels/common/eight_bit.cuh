// 8-bit elements as pairs of float16 or bfloat16, which hold all their values exactly.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/mma.cuh"

namespace fdpp {

template <typename T>
__device__ __forceinline__ uint32_t widened_half2(__half2 pair) {
  if constexpr (std::is_same_v<T, __half>) {
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const float2 wide = __half22float2(pair);
    return pack2<T>(wide.x, wide.y);
  }
}

// The four elements of `bytes` in pairs: 0, 1 and 2, 3, or, crossed, 0, 2 and 1, 3.
template <typename T, typename C, bool kCrossed = false>
__device__ __forceinline__ void widen4(uint32_t bytes, uint32_t& first, uint32_t& second) {
  if constexpr (std::is_same_v<C, int8_t>) {
    // 0x6400 + u is 1024 + u in float16.
    const uint32_t biased = bytes ^ 0x80808080;
    const uint32_t a = __byte_perm(biased, 0x64646464, kCrossed ? 0x4240 : 0x4140);
    const uint32_t b = __byte_perm(biased, 0x64646464, kCrossed ? 0x4341 : 0x4342);
    const __half2 offset = __float2half2_rn(1024 + 128);
    first = widened_half2<T>(__hsub2(*reinterpret_cast<const __half2*>(&a), offset));
    second = widened_half2<T>(__hsub2(*reinterpret_cast<const __half2*>(&b), offset));
  } else {
    const auto widened = [](uint32_t pair) {
      return widened_half2<T>(__half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3)));
    };
    if constexpr (kCrossed) bytes = __byte_perm(bytes, 0, 0x3120);
    first = widened(bytes & 0xffff);
    second = widened(bytes >> 16);
  }
}

}  // namespace fdpp
