// Reads of weights: each byte is used once a pass, so it goes past L1 and leaves L2 first, by evict_first_policy().
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {

// 16 bytes of memory that no kernel writes meanwhile; zeros where `valid` is false (then `src` is not read).
__device__ __forceinline__ uint4 load_streamed_16(const void* src, bool valid, uint64_t policy) {
  uint4 v;
  asm volatile(
      "{\n"
      "  .reg .pred p;\n"
      "  setp.ne.s32 p, %5, 0;\n"
      "  mov.b32 %0, 0;\n"
      "  mov.b32 %1, 0;\n"
      "  mov.b32 %2, 0;\n"
      "  mov.b32 %3, 0;\n"
      "  @p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %6;\n"
      "}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(src), "r"(static_cast<int>(valid)), "l"(policy));
  return v;
}

// The same into shared memory, with cp.async.
__device__ __forceinline__ void copy_streamed_16(void* dst, const void* src, bool valid, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(dst)), "l"(src),
               "r"(valid ? 16 : 0), "l"(policy));
}

}  // namespace fdpp
