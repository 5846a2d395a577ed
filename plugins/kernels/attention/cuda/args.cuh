// What the attention kernels of this folder share: typed addresses, a row's place in the cache, and what happens to
// queries, keys and values on their way in: head norm, rotary embedding, the cache's element type.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/params.h"
#include "kernels/common/fault_code.h"
#include "kernels/common/mma.cuh"

namespace fdpp {

// Tells the compiler to keep what follows from `condition` out of the way of the rest: instructions come from a cache
// too.
__device__ __forceinline__ bool rarely(bool condition) { return __builtin_expect(condition, 0); }

inline constexpr float kLog2E = 1.44269504088896341f;

template <typename T>
struct TokenRows {
  T* data;
  int64_t batch_stride, token_stride, head_stride;

  __device__ T* at(int batch, int token, int head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

template <typename C>
struct CacheRows {
  C* data;
  int64_t batch_stride, head_stride;
  int token_stride;  // offsets within a tile are 32-bit

  __device__ C* at(int batch, int head, int token) const {
    return data + batch * batch_stride + head * head_stride + static_cast<int64_t>(token) * token_stride;
  }
};

// Scores reach the softmax in log2 units: to_log2 * (softcap ? tanh(score * cap_factor / (2 log2(e))) : score) + bias.
struct SoftmaxSettings {
  float to_log2;
  float cap_factor;    // 0: no softcap
  float growth;        // log2 units by which a row's reference may be exceeded before its sums are rescaled
  // Unified: a row starts with its head's phi as reference where its first scores lie in (phi + lower, phi + upper),
  // and keeps it while none exceeds phi + upper. phi null: the other modes.
  const float* phi;    // [Hq], natural units
  float lower, upper;  // log2 units
};

// attention_bias; data null: none.
template <typename T>
struct BiasRows {
  const T* data;
  int64_t batch_stride, head_stride, token_stride;

  __device__ const T* at(int batch, int head, int token) const {
    return data + batch * batch_stride + head * head_stride + token * token_stride;
  }
};

// One scale, or one for each KV head and column; data null: the cache holds values as they are.
struct CacheScale {
  const float* data;
  bool per_channel;

  __device__ float at(int kv_head, int head_size, int column) const {
    return per_channel ? data[kv_head * head_size + column] : *data;
  }
  __device__ float4 at4(int kv_head, int head_size, int column) const {
    if (!per_channel) return make_float4(*data, *data, *data, *data);
    return *reinterpret_cast<const float4*>(data + kv_head * head_size + column);
  }
};

// T: element type of activations; C: of the cache, T itself, int8_t or __nv_fp8_e4m3.
template <typename T, typename C = T>
struct AttentionArgs {
  TokenRows<const T> query, new_key, new_value;
  TokenRows<T> output;
  CacheRows<C> key, value;    // present
  CacheScale key_scale, value_scale;
  const int32_t* seqlens_k;
  int32_t* fault;                  // may be null
  uint64_t* out_of_range_rows;     // may be null
  const T* cos_cache;
  const T* sin_cache;
  const int64_t* position_ids;     // may be null
  const T* q_norm;                 // may be null, k_norm then too
  const T* k_norm;
  const T* head_sink;              // may be null
  BiasRows<T> bias;
  SoftmaxSettings softmax;
  float norm_epsilon;
  int query_length, group, head_size, total_length, window;
  int rotary_dim;                  // 0: none
  int rotary_positions;            // rows of cos_cache
  bool rotary_interleaved, prompt;
};

// A row of the batch: its new tokens take places first .. first + tokens - 1 of the cache.
struct CacheSpan {
  int first;
  int tokens;

  // Whether seqlens_k holds a length that the tensors allow.
  __device__ bool valid() const { return tokens > 0; }

  __device__ int length() const { return first + tokens; }
};

// `last`: the row's element of seqlens_k.
template <typename T, typename C>
__device__ CacheSpan span_of(const AttentionArgs<T, C>& args, int32_t last) {
  const int64_t length = static_cast<int64_t>(last) + 1;
  const bool valid = length >= (args.prompt ? 1 : args.query_length) && length <= args.total_length;
  if (!valid) return {};
  const int n = static_cast<int>(length);
  return args.prompt ? CacheSpan{0, n} : CacheSpan{n - args.query_length, args.query_length};
}
template <typename T, typename C>
__device__ CacheSpan locate(const AttentionArgs<T, C>& args, int batch) {
  return span_of(args, args.seqlens_k[batch]);
}

__device__ __forceinline__ void report_fault(int32_t* fault, FaultCode code) {
  if (fault != nullptr) *static_cast<volatile int32_t*>(fault) = code;
}

// Query rows of one KV head are numbered token * group + head of the group.
template <typename T, typename C>
__device__ T* output_row(const AttentionArgs<T, C>& args, int batch, int kv_head, int row) {
  return args.output.at(batch, row / args.group, kv_head * args.group + row % args.group);
}

// `count` output rows from `first` on become `value`; threads `thread` of `threads` take part.
template <typename T, typename C>
__device__ void fill_output(const AttentionArgs<T, C>& args, int batch, int kv_head, int first, int count, float value,
                            int thread, int threads) {
  const int units = args.head_size / 4;
  const uint32_t pair = pack2<T>(value, value);
  for (int i = thread; i < count * units; i += threads) {
    T* row = output_row(args, batch, kv_head, first + i / units);
    *reinterpret_cast<uint2*>(row + i % units * 4) = make_uint2(pair, pair);
  }
}

// The sink of a query head in log2 units; -inf where there is none.
template <typename T, typename C>
__device__ float sink_log2(const AttentionArgs<T, C>& args, int kv_head, int row) {
  if (args.head_sink == nullptr) return -INFINITY;
  return to_float<T>(args.head_sink[kv_head * args.group + row % args.group]) * kLog2E;
}

// The rotary angle's row for new token `token`; -1 where position_ids names none, which is reported.
template <typename T, typename C>
__device__ int rotary_position(const AttentionArgs<T, C>& args, const CacheSpan& span, int batch, int token) {
  if (args.position_ids == nullptr) return span.first + token;
  const int64_t position = args.position_ids[static_cast<int64_t>(batch) * args.query_length + token];
  if (position >= 0 && position < args.rotary_positions) return static_cast<int>(position);
  report_fault(args.fault, kBadPosition);
  return -1;
}

template <typename T>
__device__ __forceinline__ float4 unpack4(uint2 packed) {
  const float2 low = unpack2<T>(packed.x), high = unpack2<T>(packed.y);
  return make_float4(low.x, low.y, high.x, high.y);
}
template <typename T>
__device__ __forceinline__ float4 load4(const T* from) {
  return unpack4<T>(*reinterpret_cast<const uint2*>(from));
}
__device__ __forceinline__ float4 scaled4(const float4& a, const float4& b, float factor) {
  return make_float4(a.x * b.x * factor, a.y * b.y * factor, a.z * b.z * factor, a.w * b.w * factor);
}

// 1 / (root mean square) of a head's vector, by all lanes of a warp; 1 where there is no norm.
template <typename T>
__device__ float inverse_rms(const T* vector, const T* norm, int head_size, float epsilon) {
  if (norm == nullptr) return 1;
  float sum = 0;
  for (int column = threadIdx.x % 32 * 4; column < head_size; column += 128) {
    const float4 x = load4(vector + column);
    sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return rsqrtf(sum / head_size + epsilon);
}

// Columns `column` .. `column` + 3 (a multiple of 4) of a query or key head after norm and rotary embedding. `norm` may
// be null; `factor` is its inverse_rms. A position of -1 gives NaN.
template <typename T, typename C>
__device__ __forceinline__ float4 prepared4(const AttentionArgs<T, C>& args, const T* vector, const T* norm,
                                            float factor, int column, int position) {
  const auto load = [](const T* from) { return *reinterpret_cast<const uint2*>(from); };
  const bool turns = column < args.rotary_dim, low = column < args.rotary_dim / 2;
  const int half = args.rotary_dim / 2, angle = low ? column : column - half, partner = low ? column + half : angle;
  const int64_t row = static_cast<int64_t>(position) * half;
  // All loads are under way before the first is waited for.
  const uint2 raw = load(vector + column);
  uint2 raw_partner{}, raw_cos{}, raw_sin{};
  if (turns && position >= 0) {
    if (args.rotary_interleaved) {
      raw_cos.x = *reinterpret_cast<const uint32_t*>(args.cos_cache + row + column / 2);
      raw_sin.x = *reinterpret_cast<const uint32_t*>(args.sin_cache + row + column / 2);
    } else {
      raw_partner = load(vector + partner);
      raw_cos = load(args.cos_cache + row + angle);
      raw_sin = load(args.sin_cache + row + angle);
    }
  }
  const auto normed = [&](uint2 packed, int at) {
    const float4 x = unpack4<T>(packed);
    return norm == nullptr ? x : scaled4(x, load4(norm + at), factor);
  };
  const float4 x = normed(raw, column);
  if (!turns) return x;
  if (position < 0) return make_float4(NAN, NAN, NAN, NAN);
  if (args.rotary_interleaved) {
    const float2 c = unpack2<T>(raw_cos.x), s = unpack2<T>(raw_sin.x);
    return make_float4(x.x * c.x - x.y * s.x, x.y * c.x + x.x * s.x, x.z * c.y - x.w * s.y, x.w * c.y + x.z * s.y);
  }
  const float4 y = normed(raw_partner, partner);
  const float4 c = unpack4<T>(raw_cos);
  float4 s = unpack4<T>(raw_sin);
  if (low) s = make_float4(-s.x, -s.y, -s.z, -s.w);
  return make_float4(x.x * c.x + y.x * s.x, x.y * c.y + y.y * s.y, x.z * c.z + y.z * s.z, x.w * c.w + y.w * s.w);
}

template <typename T>
__device__ __forceinline__ uint2 pack4(const float4& x) {
  return make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

// Four neighbouring elements of a cache.
template <typename C>
using Quad = std::conditional_t<sizeof(C) == 2, uint2, uint32_t>;

__device__ __forceinline__ uint32_t to_int8(float x) {
  return static_cast<uint32_t>(static_cast<int>(fminf(fmaxf(rintf(x), -128.0f), 127.0f))) & 0xff;
}

// What the cache stores for `x`: rounded to T, or round(x / scale) saturated to 8 bits.
template <typename T, typename C>
__device__ Quad<C> encode4(const float4& x, const CacheScale& scale, int kv_head, int head_size, int column) {
  if constexpr (sizeof(C) == 2) {
    return pack4<T>(x);
  } else {
    const float4 s = scale.at4(kv_head, head_size, column);
    const float4 q = make_float4(x.x / s.x, x.y / s.y, x.z / s.z, x.w / s.w);
    if constexpr (std::is_same_v<C, int8_t>) {
      return to_int8(q.x) | to_int8(q.y) << 8 | to_int8(q.z) << 16 | to_int8(q.w) << 24;
    } else {
      const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(q.x, q.y), __NV_SATFINITE, __NV_E4M3);
      const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(q.z, q.w), __NV_SATFINITE, __NV_E4M3);
      return low | high << 16;
    }
  }
}

// Columns `column` .. `column` + 3 of new token `token`, as the cache stores them. `factor`: the key's inverse_rms.
template <typename T, typename C>
__device__ Quad<C> new_key4(const AttentionArgs<T, C>& args, const CacheSpan& span, int batch, int kv_head, int token,
                            int column, float factor) {
  const float4 x = prepared4(args, args.new_key.at(batch, token, kv_head), args.k_norm, factor, column,
                             rotary_position(args, span, batch, token));
  return encode4<T, C>(x, args.key_scale, kv_head, args.head_size, column);
}
template <typename T, typename C>
__device__ Quad<C> new_value4(const AttentionArgs<T, C>& args, int batch, int kv_head, int token, int column) {
  const float4 x = load4(args.new_value.at(batch, token, kv_head) + column);
  return encode4<T, C>(x, args.value_scale, kv_head, args.head_size, column);
}

// The unit that scores of a head come in, by all lanes of a warp: the scale of its keys. Where each column has one, the
// largest, and each column of the query takes the ratio of its own scale to it: so queries stay in T's range.
template <typename T, typename C>
__device__ float key_unit(const AttentionArgs<T, C>& args, int kv_head) {
  if constexpr (sizeof(C) == 2) return 1;
  if (!args.key_scale.per_channel) return *args.key_scale.data;
  float largest = 0;
  for (int column = threadIdx.x % 32; column < args.head_size; column += 32)
    largest = fmaxf(largest, fabsf(args.key_scale.at(kv_head, args.head_size, column)));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  return largest > 0 ? largest : 1;
}

// ---- arithmetic of the softmax

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What turns a row's sum of weighted values into its output: 1 / l, the sink's share included.
__device__ __forceinline__ float output_factor(float m, float l, float sink) {
  if (l == 0) return 0;
  const float top = fmaxf(m, sink);
  const float own = exp2_approx(m - top);
  return __fdividef(own, l * own + exp2_approx(sink - top));
}

}  // namespace fdpp
