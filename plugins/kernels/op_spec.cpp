#include "fdpp/op_spec.h"

namespace fdpp {

const OpSpec& attention_spec() {
  static const OpSpec spec = {
      "FdppAttention",
      {
          {"query", "T", false, false},
          {"key", "T", true, false},
          {"value", "T", true, false},
          {"past_key", "C", true, false},
          {"past_value", "C", true, false},
          {"seqlens_k", "int32", false, false},
          {"total_sequence_length", "int32", false, true},
          {"cos_cache", "T", true, false},
          {"sin_cache", "T", true, false},
          {"position_ids", "int64", true, false},
          {"attention_bias", "T", true, false},
          {"head_sink", "T", true, false},
          {"k_scale", "float32", true, false},
          {"v_scale", "float32", true, false},
          {"q_norm", "T", true, false},
          {"k_norm", "T", true, false},
          {"phi", "float32", true, false},
      },
      {
          {"output", "T", false, false},
          {"present_key", "C", false, false},
          {"present_value", "C", false, false},
      },
      {
          {"num_heads", AttributeKind::integer, nullptr, "query heads Hq"},
          {"kv_num_heads", AttributeKind::integer, nullptr, "key and value heads Hkv; divides num_heads"},
          {"scale", AttributeKind::real, "0", "factor of the scores; 0 means 1 / sqrt(head size)"},
          {"softcap", AttributeKind::real, "0", "> 0: scores become softcap * tanh(score / softcap)"},
          {"local_window_size", AttributeKind::integer, "-1", "tokens a query sees, itself included; -1: all"},
          {"do_rotary", AttributeKind::integer, "0", "1: rotate query and key by cos_cache and sin_cache"},
          {"rotary_interleaved", AttributeKind::integer, "0", "1: pairs (2i, 2i+1) instead of (i, i + dim / 2)"},
          {"rotary_embedding_dim", AttributeKind::integer, "0", "rotated columns of a head; 0: as the caches say"},
          {"softmax_mode", AttributeKind::text, "lazy", "unified (with phi), lazy or online"},
          {"phi_lower", AttributeKind::real, "-8", "unified: scores below phi + phi_lower leave the interval"},
          {"phi_upper", AttributeKind::real, "8", "unified: scores above phi + phi_upper leave the interval"},
          {"qk_norm_epsilon", AttributeKind::real, "1e-06", "added to the mean square of a head where q_norm is given"},
          {"k_quant_type", AttributeKind::text, "NONE", "NONE, PER_TENSOR or PER_CHANNEL: what k_scale is"},
          {"v_quant_type", AttributeKind::text, "NONE", "NONE, PER_TENSOR or PER_CHANNEL: what v_scale is"},
      },
      {
          {"cpu", {{"T", "float32"}, {"C", "float32"}}},
          {"cpu", {{"T", "float32"}, {"C", "float16"}}},
          {"cpu", {{"T", "float32"}, {"C", "int8"}}},
          {"cpu", {{"T", "float32"}, {"C", "float8e4m3fn"}}},
          {"cpu", {{"T", "float16"}, {"C", "float16"}}},
          {"cuda", {{"T", "float16"}, {"C", "float16"}}},
          {"cuda", {{"T", "float16"}, {"C", "int8"}}},
          {"cuda", {{"T", "float16"}, {"C", "float8e4m3fn"}}},
          {"cuda", {{"T", "bfloat16"}, {"C", "bfloat16"}}},
          {"cuda", {{"T", "bfloat16"}, {"C", "int8"}}},
          {"cuda", {{"T", "bfloat16"}, {"C", "float8e4m3fn"}}},
      },
      {{kAttnPastKey, kAttnPresentKey}, {kAttnPastValue, kAttnPresentValue}},
  };
  return spec;
}

const OpSpec& gemm_spec() {
  static const OpSpec spec = {
      "FdppFlatGemm",
      {
          {"A", "T", false, false},
          {"B", "W", false, false},
          {"scales", "T", true, false},
          {"zero_points", "uint8", true, false},
          {"bias", "T", true, false},
          {"residual", "T", true, false},
          {"norm_weight", "T", true, false},
          {"next_weight", "W", true, false},
          {"norm_bias", "T", true, false},
      },
      {{"Y", "T", false, false}},
      {
          {"N", AttributeKind::integer, nullptr, "columns of Y; rows of B, which has 2N with silu_mul"},
          {"K", AttributeKind::integer, nullptr, "columns of A, values in a row of B"},
          {"weight_format", AttributeKind::text, nullptr, "f32, f16, bf16, int8, fp8 or int4: what B holds"},
          {"block_size", AttributeKind::integer, "0", "int4: values of a row that share a scale, 16, 32, 64 or 128"},
          {"activation", AttributeKind::text, "none", "none, relu, gelu, gelu_tanh, silu or silu_mul"},
          {"norm", AttributeKind::text, "rms", "rms or layer: what norm_weight is the weight of"},
          {"norm_epsilon", AttributeKind::real, "1e-06", "added to a row's mean square or variance where norm_weight is given"},
          {"accuracy_level", AttributeKind::integer, "0", "4: int4 kernels may round A to int8, block by block"},
      },
      {
          {"cpu", {{"T", "float32"}, {"W", "float32"}}},
          {"cpu", {{"T", "float32"}, {"W", "float16"}}},
          {"cpu", {{"T", "float32"}, {"W", "bfloat16"}}},
          {"cpu", {{"T", "float32"}, {"W", "int8"}}},
          {"cpu", {{"T", "float32"}, {"W", "float8e4m3fn"}}},
          {"cpu", {{"T", "float32"}, {"W", "uint8"}}},
          {"cuda", {{"T", "float16"}, {"W", "float16"}}},
          {"cuda", {{"T", "float16"}, {"W", "int8"}}},
          {"cuda", {{"T", "float16"}, {"W", "float8e4m3fn"}}},
          {"cuda", {{"T", "float16"}, {"W", "uint8"}}},
          {"cuda", {{"T", "bfloat16"}, {"W", "bfloat16"}}},
          {"cuda", {{"T", "bfloat16"}, {"W", "int8"}}},
          {"cuda", {{"T", "bfloat16"}, {"W", "float8e4m3fn"}}},
          {"cuda", {{"T", "bfloat16"}, {"W", "uint8"}}},
      },
      {},
  };
  return spec;
}

const OpSpec& greedy_step_spec() {
  static const OpSpec spec = {
      "FdppGreedyStep",
      {
          {"logits", "T", false, false},
          {"positions", "int64", false, false},
          {"attention_mask", "int64", false, false},
      },
      {
          {"next_tokens", "int64", false, false},
          {"next_positions", "int64", false, false},
          {"next_attention_mask", "int64", false, false},
          {"host_tokens", "int64", false, false},
      },
      {},
      {
          {"cpu", {{"T", "float32"}}},
          {"cpu", {{"T", "float16"}}},
          {"cuda", {{"T", "float32"}}},
          {"cuda", {{"T", "float16"}}},
      },
      {},
  };
  return spec;
}

}  // namespace fdpp
