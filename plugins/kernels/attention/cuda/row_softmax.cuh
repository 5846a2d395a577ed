// What the weights 2^(score - reference) of a query row are measured against, in the three softmax modes.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"

namespace fdpp {

// A query head's phi in log2 units; NaN, which no score is near, in the other modes.
__device__ __forceinline__ float phi_log2(const SoftmaxSettings& settings, int head) {
  return settings.phi == nullptr ? NAN : settings.phi[head] * kLog2E;
}

struct RowReference {
  float m = -INFINITY;      // log2 units; -inf until the row has seen a finite score
  float limit = -INFINITY;  // a score above moves m

  __device__ __forceinline__ bool is_exceeded(float top) const { return top > limit; }

  // Moves m for a block of keys whose largest score `top` exceeds the limit; returns the factor for the sums so far.
  __device__ __forceinline__ float move(float top, float phi, const SoftmaxSettings& settings) {
    const bool near_phi = m == -INFINITY && top > phi + settings.lower && top < phi + settings.upper;
    const float moved = near_phi ? phi : top;
    const float factor = exp2_approx(m - moved);
    m = moved;
    limit = near_phi ? phi + settings.upper : top + settings.growth;
    return factor;
  }

  // m, or 0 where no score was seen: weights must come out as 0 there, not as NaN.
  __device__ __forceinline__ float subtrahend() const { return m == -INFINITY ? 0 : m; }

  // Unified: whether the row has seen a score and left phi.
  __device__ __forceinline__ bool has_left(float phi) const { return m != -INFINITY && m != phi; }
};

// The sum over the four lanes that hold parts of one row of an mma accumulator.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Adds rows that left phi to the counter; all lanes of a warp call it, and each row counts in one of them.
template <typename T, typename C>
__device__ __forceinline__ void count_out_of_range(const AttentionArgs<T, C>& args, bool first_counts,
                                                   bool second_counts) {
  if (args.softmax.phi == nullptr || args.out_of_range_rows == nullptr) return;
  const int rows = __popc(__ballot_sync(~0u, first_counts)) + __popc(__ballot_sync(~0u, second_counts));
  if (rows > 0 && threadIdx.x % 32 == 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(args.out_of_range_rows), static_cast<unsigned long long>(rows));
}

}  // namespace fdpp
