// What the attention kernels of this folder share: typed addresses, a row's place in the cache, rotary embedding and
// the append of new tokens.
#pragma once

#include <cstdint>

#include "kernels/attention/params.h"
#include "kernels/common/fault_code.h"
#include "kernels/common/mma.cuh"

namespace fdpp {

inline constexpr float kLog2E = 1.44269504088896341f;

template <typename T>
struct TokenRows {
  T* data;
  int64_t batch_stride, token_stride, head_stride;

  __device__ T* at(int batch, int token, int head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

template <typename T>
struct CacheRows {
  T* data;
  int64_t batch_stride, head_stride;
  int token_stride;  // offsets within a tile are 32-bit

  __device__ T* at(int batch, int head, int token) const {
    return data + batch * batch_stride + head * head_stride + static_cast<int64_t>(token) * token_stride;
  }
};

// Scores reach the softmax in log2 units: to_log2 * (softcap ? tanh(score * cap_factor / (2 log2(e))) : score).
struct SoftmaxSettings {
  float to_log2;
  float cap_factor;  // 0: no softcap
  float growth;      // log2 units by which a row's maximum must grow before its sums are rescaled
};

template <typename T>
struct AttentionArgs {
  TokenRows<const T> query, new_key, new_value;
  TokenRows<T> output;
  CacheRows<T> key, value;    // present
  const int32_t* seqlens_k;
  int32_t* fault;             // may be null
  const T* cos_cache;
  const T* sin_cache;
  const T* head_sink;         // may be null
  SoftmaxSettings softmax;
  int query_length, group, head_size, total_length, window;
  int rotary_dim;             // 0: none
  bool rotary_interleaved, prompt;
};

// Batch row `b`: its new tokens take positions first .. first + tokens - 1 of the cache.
struct CacheSpan {
  bool valid;   // seqlens_k holds a length that the tensors allow
  int first;
  int tokens;

  __device__ int length() const { return first + tokens; }
};

template <typename T>
__device__ CacheSpan locate(const AttentionArgs<T>& args, int batch) {
  const int64_t length = static_cast<int64_t>(args.seqlens_k[batch]) + 1;
  const bool valid = length >= (args.prompt ? 1 : args.query_length) && length <= args.total_length;
  if (!valid) return {false, 0, 0};
  const int n = static_cast<int>(length);
  return args.prompt ? CacheSpan{true, 0, n} : CacheSpan{true, n - args.query_length, args.query_length};
}

template <typename T>
__device__ void report_bad_length(const AttentionArgs<T>& args) {
  if (args.fault != nullptr) *static_cast<volatile int32_t*>(args.fault) = kBadSeqlens;
}

// Query rows of one KV head are numbered token * group + head of the group.
template <typename T>
__device__ T* output_row(const AttentionArgs<T>& args, int batch, int kv_head, int row) {
  return args.output.at(batch, row / args.group, kv_head * args.group + row % args.group);
}

// `count` output rows from `first` on become `value`; all threads of the block take part.
template <typename T>
__device__ void fill_output(const AttentionArgs<T>& args, int batch, int kv_head, int first, int count, float value) {
  const int units = args.head_size / 4;
  const uint32_t pair = pack2<T>(value, value);
  for (int i = threadIdx.x; i < count * units; i += blockDim.x) {
    T* row = output_row(args, batch, kv_head, first + i / units);
    *reinterpret_cast<uint2*>(row + i % units * 4) = make_uint2(pair, pair);
  }
}

// The sink of a query head in log2 units; -inf where there is none.
template <typename T>
__device__ float sink_log2(const AttentionArgs<T>& args, int kv_head, int row) {
  if (args.head_sink == nullptr) return -INFINITY;
  return to_float<T>(args.head_sink[kv_head * args.group + row % args.group]) * kLog2E;
}

// Columns `column` .. `column` + 3 (a multiple of 4) of a head's vector, after the rotary embedding of `position`.
template <typename T>
__device__ uint2 rotated4(const AttentionArgs<T>& args, const T* vector, int column, int position) {
  const uint2 x = *reinterpret_cast<const uint2*>(vector + column);
  if (column >= args.rotary_dim) return x;
  const float2 x01 = unpack2<T>(x.x), x23 = unpack2<T>(x.y);
  const int half = args.rotary_dim / 2;
  const T* cos_row = args.cos_cache + static_cast<int64_t>(position) * half;
  const T* sin_row = args.sin_cache + static_cast<int64_t>(position) * half;
  if (args.rotary_interleaved) {
    const float2 c = unpack2<T>(*reinterpret_cast<const uint32_t*>(cos_row + column / 2));
    const float2 s = unpack2<T>(*reinterpret_cast<const uint32_t*>(sin_row + column / 2));
    return make_uint2(pack2<T>(x01.x * c.x - x01.y * s.x, x01.y * c.x + x01.x * s.x),
                      pack2<T>(x23.x * c.y - x23.y * s.y, x23.y * c.y + x23.x * s.y));
  }
  const bool low = column < half;
  const int angle = low ? column : column - half;
  const uint2 y = *reinterpret_cast<const uint2*>(vector + (low ? column + half : angle));
  const uint2 cos4 = *reinterpret_cast<const uint2*>(cos_row + angle);
  const uint2 sin4 = *reinterpret_cast<const uint2*>(sin_row + angle);
  const float2 y01 = unpack2<T>(y.x), y23 = unpack2<T>(y.y);
  const float2 c01 = unpack2<T>(cos4.x), c23 = unpack2<T>(cos4.y);
  float2 s01 = unpack2<T>(sin4.x), s23 = unpack2<T>(sin4.y);
  if (low) {
    s01 = make_float2(-s01.x, -s01.y);
    s23 = make_float2(-s23.x, -s23.y);
  }
  return make_uint2(pack2<T>(x01.x * c01.x + y01.x * s01.x, x01.y * c01.y + y01.y * s01.y),
                    pack2<T>(x23.x * c23.x + y23.x * s23.x, x23.y * c23.y + y23.y * s23.y));
}

// Four columns of new token `token` go to their place in the cache, the key rotated.
template <typename T>
__device__ void append4(const AttentionArgs<T>& args, const CacheSpan& span, int batch, int kv_head, int token,
                        int column) {
  const int position = span.first + token;
  *reinterpret_cast<uint2*>(args.key.at(batch, kv_head, position) + column) =
      rotated4(args, args.new_key.at(batch, token, kv_head), column, position);
  *reinterpret_cast<uint2*>(args.value.at(batch, kv_head, position) + column) =
      *reinterpret_cast<const uint2*>(args.new_value.at(batch, token, kv_head) + column);
}

}  // namespace fdpp
