// What an attention kernel receives: addresses and strides over a checked problem.
#pragma once

#include <cstdint>

#include "fdpp/attention.h"

namespace fdpp {

// A [B, S, heads, D] view; strides in elements, D contiguous.
struct TokenView {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// A [B, Hkv, L, D] cache; strides in elements, D contiguous.
struct CacheView {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
};

struct AttentionParams {
  AttentionProblem problem;
  TokenView query;                      // dtype, Hq heads
  TokenView new_key, new_value;         // dtype, Hkv heads
  TokenView output;                     // dtype, Hq heads
  CacheView past_key, past_value;       // cache_dtype; data null where there is no past
  CacheView present_key, present_value; // cache_dtype; data equal to past's where the cache is updated in place
  const int32_t* seqlens_k = nullptr;   // [B], total length - 1; device memory on a GPU
  const void* cos_cache = nullptr;      // dtype [positions, rotary_dim / 2]; null without rotary
  const void* sin_cache = nullptr;
  const int64_t* position_ids = nullptr;  // [B, S], null: a token's place in the cache is its position
  const void* attention_bias = nullptr; // dtype; element (b, h, s, key) at b * bias_batch_stride + h * bias_head_stride
  int64_t bias_batch_stride = 0;        //   + s * total_length + key; a stride of 0 where the dimension is 1
  int64_t bias_head_stride = 0;
  const void* head_sink = nullptr;      // dtype [Hq] or null: a logit per head that takes part in the softmax alone
  const float* key_scale = nullptr;     // null without quantization; [1], or [Hkv, D] per channel
  const float* value_scale = nullptr;
  const void* q_norm = nullptr;         // dtype [D] or null
  const void* k_norm = nullptr;
  const float* phi = nullptr;           // [Hq], unified alone
};

}  // namespace fdpp
