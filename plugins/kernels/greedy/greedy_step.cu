// A block a row: it looks for the greatest logit and writes what the next step reads of that row.
#include <type_traits>

#include "kernels/common/mma.cuh"
#include "kernels/greedy/params.h"

namespace fdpp {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarp = 32;

// Grows with the value, of equal values with an earlier place; greatest of all for a NaN.
template <typename T>
__device__ __forceinline__ uint64_t key_of(T logit, uint32_t place) {
  float value;
  if constexpr (std::is_same_v<T, float>)
    value = logit;
  else
    value = to_float(logit);
  if (isnan(value)) return ~uint64_t{0};
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes 0: they are equal
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | ~place;
}

__device__ __forceinline__ uint64_t warp_max(uint64_t key) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) key = max(key, __shfl_xor_sync(0xffffffffu, key, offset));
  return key;
}

// Elements are read 16 bytes at a time where `kVectors`.
template <typename T, bool kVectors>
__device__ __forceinline__ uint64_t greatest_of_thread(const T* row, int vocabulary) {
  uint64_t best = 0;
  if constexpr (kVectors) {
    constexpr int kVector = 16 / sizeof(T);
    const int vectors = vocabulary / kVector;
#pragma unroll 4
    for (int v = threadIdx.x; v < vectors; v += kThreads) {
      const uint4 loaded = reinterpret_cast<const uint4*>(row)[v];
      const T* const values = reinterpret_cast<const T*>(&loaded);
#pragma unroll
      for (int i = 0; i < kVector; ++i) best = max(best, key_of(values[i], v * kVector + i));
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < vocabulary; i += kThreads) best = max(best, key_of(row[i], i));
  }
  return best;
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    greedy_step_kernel(const T* __restrict__ logits, int vocabulary, const int64_t* positions, int64_t* next_tokens,
                       int64_t* next_positions, int64_t* next_mask, int64_t* host_tokens, int64_t capacity) {
  __shared__ uint64_t keys[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const int64_t position = positions[row] + 1;

  const uint64_t mine = warp_max(greatest_of_thread<T, kVectors>(logits + row * vocabulary, vocabulary));
  if (threadIdx.x % kWarp == 0) keys[threadIdx.x / kWarp] = mine;
  __syncthreads();  // and nobody reads positions[row] any more, which may be next_positions[row]
  if (threadIdx.x < kWarp) {
    const uint64_t key = warp_max(keys[threadIdx.x]);
    if (threadIdx.x == 0) {
      const bool is_nan = key == ~uint64_t{0};
      const int64_t token = static_cast<int64_t>(~static_cast<uint32_t>(key));
      next_tokens[row] = is_nan ? kAnyToken : token;
      host_tokens[row] = is_nan ? kNoToken : token;
      next_positions[row] = position;
    }
  }
  for (int64_t i = threadIdx.x; i < capacity; i += kThreads) next_mask[row * capacity + i] = i <= position;
}

template <typename T>
Status launch(const GreedyParams& p, cudaStream_t stream) {
  const GreedyStep& step = p.step;
  const bool vectors =
      reinterpret_cast<uintptr_t>(p.logits) % 16 == 0 && step.vocabulary * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  const auto kernel = vectors ? greedy_step_kernel<T, true> : greedy_step_kernel<T, false>;
  kernel<<<static_cast<unsigned>(step.batch), kThreads, 0, stream>>>(
      static_cast<const T*>(p.logits), static_cast<int>(step.vocabulary), p.positions, p.next_tokens, p.next_positions,
      p.next_mask, p.host_tokens, step.capacity);
  return check_launch("FdppGreedyStep");
}

}  // namespace

Status run_greedy_step_cuda(const GreedyParams& params, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  return params.step.dtype == DType::f32 ? launch<float>(params, on) : launch<__half>(params, on);
}

}  // namespace fdpp
