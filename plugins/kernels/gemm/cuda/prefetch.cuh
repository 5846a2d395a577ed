// The hint next_weight: a product's blocks bring the beginning of a later product's weight into the L2, so that memory is
// not idle from their last reads to the first ones of that product, whatever runs in between.
#pragma once

#include <algorithm>

#include "kernels/common/ceil_div.h"
#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// Bytes, of all blocks and of one: more than that delays the product's own reads by more than it spares the next one's on
// an H200; and the instruction has 16 bits for units of 16.
constexpr int64_t kMostPrefetched = 4 << 20, kMostOfBlock = 256 << 10;

// How it is shared out. A grid of more blocks than run at once leaves it to the last ones: until those run, the product
// still reads its own weight.
struct NextWeight {
  const char* from = nullptr;
  uint32_t bytes = 0;        // of all blocks
  uint32_t share = 0;        // of a block: whole lines
  uint32_t first_block = 0;  // that has a share

  NextWeight() = default;
  NextWeight(const GemmParams& params, int64_t blocks) : NextWeight(params, blocks, blocks) {}
  NextWeight(const GemmParams& params, int64_t blocks, int64_t at_once) {
    constexpr int kUnit = 16, kLine = 128;  // bytes: of the instruction, and of the L2
    const auto begin = reinterpret_cast<uintptr_t>(params.next_weight);
    const auto skipped = static_cast<int64_t>(-begin % kUnit);
    const int64_t sharers = std::min(blocks, at_once);
    const int64_t there = (params.next_weight_bytes - skipped) / kUnit * kUnit;
    const int64_t whole = std::min({there, kMostPrefetched, sharers * kMostOfBlock});
    if (whole <= 0) return;
    from = static_cast<const char*>(params.next_weight) + skipped;
    bytes = static_cast<uint32_t>(whole);
    share = static_cast<uint32_t>(ceil_div(whole, sharers * kLine) * kLine);
    first_block = static_cast<uint32_t>(blocks - sharers);
  }
};

// One thread of each block calls, once the block's own reads of weights are under way. Devices before sm_90 ignore the hint.
__device__ __forceinline__ void prefetch(const NextWeight& next) {
#if __CUDA_ARCH__ >= 900
  if (blockIdx.x < next.first_block) return;
  const uint32_t begin = (blockIdx.x - next.first_block) * next.share;
  if (begin >= next.bytes) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(next.from + begin),
               "r"(min(next.share, next.bytes - begin))
               : "memory");
#endif
}

}  // namespace fdpp
