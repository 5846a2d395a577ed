// New tokens into the cache, as a launch of its own before the attention kernels that read them there.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/args.cuh"
#include "kernels/common/pipeline.cuh"

namespace fdpp {

inline constexpr int kAppendWarps = 4;

// A warp for each token and KV head: the key's norm, rotary embedding and encoding, and the value's where `values`.
template <typename T, typename C>
__global__ void __launch_bounds__(32 * kAppendWarps)
    append_kernel(const __grid_constant__ AttentionArgs<T, C> args, bool values) {
  release_successor();
  const int kv_head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x % 32;
  const int token = blockIdx.x * kAppendWarps + threadIdx.x / 32;
  const CacheSpan span = locate(args, batch);
  if (token >= span.tokens) return;
  const int place = span.first + token;
  const float factor =
      inverse_rms(args.new_key.at(batch, token, kv_head), args.k_norm, args.head_size, args.norm_epsilon);
  C* const key = args.key.at(batch, kv_head, place);
  C* const value = args.value.at(batch, kv_head, place);
  const int units = args.head_size / 4;
  for (int unit = lane; unit < (values ? 2 : 1) * units; unit += 32) {
    const int column = unit % units * 4;
    if (unit < units) {
      *reinterpret_cast<Quad<C>*>(key + column) = new_key4(args, span, batch, kv_head, token, column, factor);
    } else {
      *reinterpret_cast<Quad<C>*>(value + column) = new_value4(args, batch, kv_head, token, column);
    }
  }
}

template <typename T, typename C>
Status launch_append(const AttentionArgs<T, C>& args, const AttentionProblem& p, bool values, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.query_length + kAppendWarps - 1) / kAppendWarps),
                  static_cast<unsigned>(p.kv_heads), static_cast<unsigned>(p.batch));
  append_kernel<T, C><<<grid, 32 * kAppendWarps, 0, stream>>>(args, values);
  return check_launch("append_kernel");
}

}  // namespace fdpp
