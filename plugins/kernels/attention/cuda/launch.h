// The host side that the attention kernels of this folder share.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "kernels/attention/cuda/args.cuh"
#include "kernels/attention/variant.h"
#include "kernels/common/ceil_div.h"
#include "kernels/common/shared_memory_grant.h"

namespace fdpp {

inline bool takes_attention(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  constexpr int64_t kMaxGrid = 65535;
  if (device.compute_capability < 80) {
    *why = "needs compute capability 8.0";
  } else if ((p.dtype != DType::f16 && p.dtype != DType::bf16) || (p.cache_dtype != p.dtype && !p.quantized())) {
    *why = "takes float16 or bfloat16, and a cache of the same type, int8 or float8e4m3fn";
  } else if (p.quantized() && p.head_size % 16 != 0) {
    *why = "takes an 8-bit cache with head sizes that are multiples of 16, not " + std::to_string(p.head_size);
  } else if (p.batch > kMaxGrid || p.kv_heads > kMaxGrid) {
    *why = "takes at most 65535 rows and KV heads";
  } else if (p.query_length * p.group() > (int64_t{1} << 30)) {
    *why = "takes at most 2^30 query rows per KV head";
  } else {
    return true;
  }
  return false;
}

template <typename T>
struct ElementTag {
  using type = T;
};

// Calls f(ElementTag<T>, ElementTag<C>) with the element types of activations and cache.
template <typename F>
Status with_types(const AttentionProblem& p, F&& f) {
  const auto with_cache = [&](auto element) -> Status {
    if (p.cache_dtype == DType::i8) return f(element, ElementTag<int8_t>{});
    if (p.cache_dtype == DType::f8e4m3) return f(element, ElementTag<__nv_fp8_e4m3>{});
    return f(element, element);
  };
  return p.dtype == DType::f16 ? with_cache(ElementTag<__half>{}) : with_cache(ElementTag<__nv_bfloat16>{});
}

// The settings of the problem's softmax mode; `weights` is the type in which weights meet values.
inline SoftmaxSettings softmax_settings(const AttentionParams& params, DType weights) {
  constexpr float kLazyGrowth = 8;  // weights stay below 2^8, far from float16's limit
  // float16 keeps its precision from 2^-14 to 2^16, so the largest weight of a row stays within 2^-10 and 2^15;
  // bfloat16 has float32's range, where the sum of a long row must still fit.
  const float lowest = weights == DType::f16 ? -10.0f : -60.0f;
  const float highest = weights == DType::f16 ? 15.0f : 60.0f;
  const AttentionProblem& p = params.problem;
  SoftmaxSettings s{};
  s.to_log2 = (p.softcap > 0 ? p.softcap : p.scale) * kLog2E;
  s.cap_factor = p.softcap > 0 ? 2 * kLog2E * p.scale / p.softcap : 0;
  s.growth = p.softmax_mode == SoftmaxMode::online ? 0 : kLazyGrowth;
  if (p.softmax_mode == SoftmaxMode::unified) {
    s.phi = params.phi;
    s.lower = std::max(p.phi_lower * kLog2E, lowest);
    s.upper = std::min(p.phi_upper * kLog2E, highest);
  }
  return s;
}

template <typename T, typename C>
AttentionArgs<T, C> make_args(const AttentionParams& params, const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  const auto tokens = [](const TokenView& v) {
    return TokenRows<const T>{static_cast<const T*>(v.data), v.batch_stride, v.token_stride, v.head_stride};
  };
  const auto cache = [](const CacheView& v) {
    return CacheRows<C>{static_cast<C*>(v.data), v.batch_stride, v.head_stride, static_cast<int>(v.token_stride)};
  };
  AttentionArgs<T, C> args{};
  args.query = tokens(params.query);
  args.new_key = tokens(params.new_key);
  args.new_value = tokens(params.new_value);
  args.output = {static_cast<T*>(params.output.data), params.output.batch_stride, params.output.token_stride,
                 params.output.head_stride};
  args.key = cache(params.present_key);
  args.value = cache(params.present_value);
  args.key_scale = {params.key_scale, p.key_quantization == CacheQuantization::per_channel};
  args.value_scale = {params.value_scale, p.value_quantization == CacheQuantization::per_channel};
  args.seqlens_k = params.seqlens_k;
  args.fault = context.fault;
  args.out_of_range_rows = context.out_of_range_rows;
  args.cos_cache = static_cast<const T*>(params.cos_cache);
  args.sin_cache = static_cast<const T*>(params.sin_cache);
  args.position_ids = params.position_ids;
  args.q_norm = static_cast<const T*>(params.q_norm);
  args.k_norm = static_cast<const T*>(params.k_norm);
  args.head_sink = static_cast<const T*>(params.head_sink);
  args.bias = {static_cast<const T*>(params.attention_bias), params.bias_batch_stride, params.bias_head_stride,
               p.total_length};
  args.softmax = softmax_settings(params, p.dtype);
  args.norm_epsilon = p.norm_epsilon;
  args.query_length = static_cast<int>(p.query_length);
  args.group = static_cast<int>(p.group());
  args.head_size = static_cast<int>(p.head_size);
  args.total_length = static_cast<int>(p.total_length);
  // A window as wide as the context hides nothing.
  args.window = p.window > 0 && p.window < p.total_length ? static_cast<int>(p.window) : 0;
  args.rotary_dim = static_cast<int>(p.rotary_dim);
  args.rotary_positions = static_cast<int>(p.rotary_positions);
  args.rotary_interleaved = p.rotary_interleaved;
  args.prompt = p.prompt;
  return args;
}

// Kernels move 16 bytes at a time.
inline Status check_alignment(const AttentionParams& params) {
  const struct {
    const char* name;
    const void* data;
  } tensors[] = {{"query", params.query.data},
                 {"key", params.new_key.data},
                 {"value", params.new_value.data},
                 {"output", params.output.data},
                 {"present_key", params.present_key.data},
                 {"present_value", params.present_value.data},
                 {"cos_cache", params.cos_cache},
                 {"sin_cache", params.sin_cache},
                 {"q_norm", params.q_norm},
                 {"k_norm", params.k_norm},
                 {"k_scale", params.key_scale},
                 {"v_scale", params.value_scale}};
  for (const auto& tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0)
      return invalid_argument(std::string("FdppAttention: ") + tensor.name +
                              " starts at an address that is not a multiple of 16 bytes");
  }
  return {};
}

// Where present is not past's buffer, brings in the past tokens that a row can have.
inline Status copy_past(const AttentionParams& params, cudaStream_t stream) {
  const AttentionProblem& p = params.problem;
  const int64_t tokens = std::min(p.past_capacity, p.total_length - p.query_length);
  if (p.prompt || tokens == 0) return {};
  const size_t size = dtype_size(p.cache_dtype);
  for (const auto& [past, present] : {std::pair(params.past_key, params.present_key),
                                      std::pair(params.past_value, params.present_value)}) {
    if (past.data == present.data) continue;
    FDPP_GPU(cudaMemcpy2DAsync(present.data, present.head_stride * size, past.data, past.head_stride * size,
                               tokens * p.head_size * size, p.batch * p.kv_heads, cudaMemcpyDeviceToDevice, stream));
  }
  return {};
}

}  // namespace fdpp
