// Elements of 8-bit caches as pairs of float16 or bfloat16, which hold all their values exactly.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/mma.cuh"

namespace fdpp {

// The two elements in the low 16 bits of `bytes`.
template <typename T, typename C>
__device__ __forceinline__ uint32_t widened2(uint32_t bytes) {
  __half2 pair;
  if constexpr (std::is_same_v<C, int8_t>) {
    // 0x6400 + u is 1024 + u in float16.
    const uint32_t biased = __byte_perm(bytes ^ 0x8080, 0x64646464, 0x4140);
    pair = __hsub2(*reinterpret_cast<const __half2*>(&biased), __float2half2_rn(1024 + 128));
  } else {
    pair = __half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bytes), __NV_E4M3));
  }
  if constexpr (std::is_same_v<T, __half>) {
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const float2 wide = __half22float2(pair);
    return pack2<T>(wide.x, wide.y);
  }
}

}  // namespace fdpp
