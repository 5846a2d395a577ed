// Asynchronous matrix products of a warpgroup (sm_90a): 64 rows in float32 registers, operands in shared memory or
// registers. Sums are [N / 8][4]: of columns 8 n + 2 * (lane % 4) and the next, row lane / 4 of the warp's 16
// in [0], [1] and row lane / 4 + 8 in [2], [3].
//
// Operands in shared memory are panels of 64 columns (128 bytes) a row, multiples of 1024 bytes, as the copy engine
// swizzles them: the 16-byte chunk c of row r lies at chunk c ^ (r % 8).
#pragma once

#include <cstdint>

#include "kernels/common/mma.cuh"

namespace fdpp {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;

// An operand that is summed over its columns: the 16 columns from a panel's column 0 on, all its rows. Adding
// kRowOperandStep names the next 16 columns of the panel.
__device__ __forceinline__ uint64_t row_operand(const void* panel) {
  constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16;
  return (shared_address(panel) >> 4) | uint64_t{1} << 16 | kEightRows << 32 | uint64_t{1} << 62;
}
inline constexpr uint64_t kRowOperandStep = 16 * 2 / 16;

// An operand that is summed over its rows: the 16 rows from `panel`'s row 0 on, all columns of panels that lie
// `panel_bytes` apart. Adding kColumnOperandStep names the next 16 rows.
__device__ __forceinline__ uint64_t column_operand(const void* panel, uint32_t panel_bytes) {
  constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16;
  return (shared_address(panel) >> 4) | uint64_t{panel_bytes >> 4} << 16 | kEightRows << 32 | uint64_t{1} << 62;
}
inline constexpr uint64_t kColumnOperandStep = 16 * kPanelRowBytes / 16;

// Before the first product that reads registers which other instructions have written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `Pending` of the newest groups are under way; `sums` are what the finished ones have written.
template <int Pending, int N>
__device__ __forceinline__ void wgmma_wait(float (&sums)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[n][i])::"memory");
  }
}

// Registers of this warpgroup's threads from here on: all its warps call it.
template <int Count>
__device__ __forceinline__ void raise_registers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}
template <int Count>
__device__ __forceinline__ void lower_registers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}

// sums += a · bᵀ over 16 columns of the row operands `a` and `b`; where `accumulate` is 0, sums are 0 before.
template <typename T, int N>
__device__ __forceinline__ void wgmma_rows(float (&sums)[N][4], uint64_t a, uint64_t b, int accumulate);

// sums += a · b over 16 rows of b: `a` holds 64 x 16 elements as mma m16n8k16 does, `b` is a column operand.
template <typename T, int N>
__device__ __forceinline__ void wgmma_columns(float (&sums)[N][4], const uint32_t (&a)[4], uint64_t b);

#define FDPP_SUMS_2(d, n) \
  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3]), "+f"(d[n + 1][0]), "+f"(d[n + 1][1]), \
      "+f"(d[n + 1][2]), "+f"(d[n + 1][3])
#define FDPP_SUMS_8(d, n) FDPP_SUMS_2(d, n), FDPP_SUMS_2(d, n + 2), FDPP_SUMS_2(d, n + 4), FDPP_SUMS_2(d, n + 6)
#define FDPP_SUMS_4(d, n) FDPP_SUMS_2(d, n), FDPP_SUMS_2(d, n + 2)
#define FDPP_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FDPP_NAMES_16 FDPP_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FDPP_NAMES_32                                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FDPP_NAMES_64                                                                                              \
  FDPP_NAMES_32                                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
  "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define FDPP_WGMMA_TYPE(T, NAME)                                                                                     \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_rows<T, 2>(float (&d)[2][4], uint64_t a, uint64_t b, int accumulate) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\nwgmma.mma_async.sync.aligned.m64n16k16.f32." NAME "." NAME \
                 " {" FDPP_NAMES_8 "}, %8, %9, p, 1, 1, 0, 0;\n}"                                                     \
                 : FDPP_SUMS_2(d, 0)                                                                                \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_rows<T, 4>(float (&d)[4][4], uint64_t a, uint64_t b, int accumulate) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32." NAME "." NAME \
                 " {" FDPP_NAMES_16 "}, %16, %17, p, 1, 1, 0, 0;\n}"                                                     \
                 : FDPP_SUMS_4(d, 0)                                                                                \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_rows<T, 8>(float (&d)[8][4], uint64_t a, uint64_t b, int accumulate) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME \
                 " {" FDPP_NAMES_32 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                     \
                 : FDPP_SUMS_8(d, 0)                                                                                \
                 : "l"(a), "l"(b), "r"(accumulate));                                                                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_rows<T, 16>(float (&d)[16][4], uint64_t a, uint64_t b, int accumulate) {     \
    asm volatile(                                                                                                    \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME       \
        " {" FDPP_NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                          \
        : FDPP_SUMS_8(d, 0), FDPP_SUMS_8(d, 8)                                                                       \
        : "l"(a), "l"(b), "r"(accumulate));                                                                          \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_columns<T, 16>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {      \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME \
                 " {" FDPP_NAMES_64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                   \
                 : FDPP_SUMS_8(d, 0), FDPP_SUMS_8(d, 8)                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
  }                                                                                                                  \
  template <>                                                                                                        \
  __device__ __forceinline__ void wgmma_columns<T, 8>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {        \
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME  \
                 " {" FDPP_NAMES_32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"                                   \
                 : FDPP_SUMS_8(d, 0)                                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
  }

FDPP_WGMMA_TYPE(__half, "f16")
FDPP_WGMMA_TYPE(__nv_bfloat16, "bf16")

#undef FDPP_WGMMA_TYPE
#undef FDPP_NAMES_64
#undef FDPP_NAMES_32
#undef FDPP_NAMES_16
#undef FDPP_NAMES_8
#undef FDPP_SUMS_8
#undef FDPP_SUMS_4
#undef FDPP_SUMS_2

}  // namespace fdpp
