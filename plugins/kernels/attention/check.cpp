// The one place that says which FdppAttention calls are well-formed.
#include <algorithm>
#include <cmath>

#include "fdpp/attention.h"

namespace fdpp {
namespace {

constexpr int64_t kMaxHeadSize = 256;

const char* input_name(int index) { return attention_spec().inputs[index].name; }

Status bad(const std::string& what) { return invalid_argument("FdppAttention: " + what); }

Status bad_shape(int index, const TensorView& tensor, const std::string& expected) {
  return bad(std::string(input_name(index)) + " has shape " + shape_string(tensor) + ", expected " + expected);
}

Status check_dtype(const TensorView* inputs, int index, DType expected) {
  const TensorView& t = inputs[index];
  if (!t.present() || t.dtype == expected) return {};
  return bad(std::string(input_name(index)) + " is " + dtype_name(t.dtype) + ", expected " + dtype_name(expected));
}

bool is_shape(const TensorView& t, std::initializer_list<int64_t> shape) {
  return t.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), t.dims);
}

std::string list(std::initializer_list<int64_t> shape) { return shape_string(TensorView(nullptr, DType::f32, shape)); }

Status check_types(const TensorView* in, DType t, DType c) {
  if (t != DType::f32 && t != DType::f16 && t != DType::bf16)
    return bad(std::string("query is ") + dtype_name(t) + ", expected float32, float16 or bfloat16");
  for (int i : {kAttnKey, kAttnValue, kAttnCosCache, kAttnSinCache, kAttnAttentionBias, kAttnHeadSink, kAttnQNorm,
                kAttnKNorm})
    FDPP_RETURN_IF_ERROR(check_dtype(in, i, t));
  for (int i : {kAttnPastKey, kAttnPastValue}) FDPP_RETURN_IF_ERROR(check_dtype(in, i, c));
  for (int i : {kAttnKScale, kAttnVScale, kAttnPhi}) FDPP_RETURN_IF_ERROR(check_dtype(in, i, DType::f32));
  FDPP_RETURN_IF_ERROR(check_dtype(in, kAttnPositionIds, DType::i64));
  for (int i : {kAttnSeqlensK, kAttnTotalSequenceLength}) FDPP_RETURN_IF_ERROR(check_dtype(in, i, DType::i32));
  return {};
}

Status check_presence(const TensorView* in) {
  for (int i : {kAttnQuery, kAttnSeqlensK, kAttnTotalSequenceLength})
    if (!in[i].present()) return bad(std::string(input_name(i)) + " is missing");
  for (auto [first, second] : {std::pair<int, int>{kAttnKey, kAttnValue},
                               {kAttnPastKey, kAttnPastValue},
                               {kAttnCosCache, kAttnSinCache},
                               {kAttnKScale, kAttnVScale},
                               {kAttnQNorm, kAttnKNorm}}) {
    if (in[first].present() != in[second].present())
      return bad(std::string(input_name(first)) + " and " + input_name(second) +
                 " must be given together; only one of them is");
  }
  return {};
}

Status check_quantization(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* p) {
  const bool quantized = p->quantized();
  if (!quantized && in[kAttnKScale].present())
    return bad(std::string("k_scale is given but past_key is ") + dtype_name(p->cache_dtype) +
               ", expected int8 or float8e4m3fn");
  const struct {
    int scale;
    CacheQuantization wanted;
    const char* attribute;
    CacheQuantization* out;
  } sides[] = {{kAttnKScale, attributes.k_quant_type, "k_quant_type", &p->key_quantization},
               {kAttnVScale, attributes.v_quant_type, "v_quant_type", &p->value_quantization}};
  for (const auto& side : sides) {
    const std::string says = std::string(side.attribute) + " is \"" + cache_quantization_name(side.wanted) + "\"";
    if (quantized != (side.wanted != CacheQuantization::none))
      return bad(says + " but past_key is " + dtype_name(p->cache_dtype));
    if (!quantized) continue;
    const TensorView& scale = in[side.scale];
    if (!scale.present())
      return bad(std::string(input_name(side.scale)) + " is missing: past_key is " + dtype_name(p->cache_dtype));
    const bool per_channel = side.wanted == CacheQuantization::per_channel;
    if (scale.elements() != (per_channel ? p->kv_heads * p->head_size : 1))
      return bad_shape(side.scale, scale,
                       (per_channel ? list({1, p->kv_heads, 1, p->head_size}) : std::string("one element")) +
                           ", since " + says);
    *side.out = side.wanted;
  }
  return {};
}

// Per-head norm, bias, sink and phi: what the scores get besides query · key.
Status check_extras(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* p) {
  p->has_norm = in[kAttnQNorm].present();
  if (p->has_norm) {
    for (int i : {kAttnQNorm, kAttnKNorm})
      if (!is_shape(in[i], {p->head_size})) return bad_shape(i, in[i], list({p->head_size}));
    if (!std::isfinite(attributes.qk_norm_epsilon) || attributes.qk_norm_epsilon < 0)
      return bad("qk_norm_epsilon is " + std::to_string(attributes.qk_norm_epsilon) +
                 ", expected a finite number of at least 0");
    p->norm_epsilon = attributes.qk_norm_epsilon;
  }

  const TensorView& bias = in[kAttnAttentionBias];
  if (bias.present()) {
    const bool fits = bias.rank == 4 && (bias.dims[0] == 1 || bias.dims[0] == p->batch) &&
                      (bias.dims[1] == 1 || bias.dims[1] == p->q_heads) && bias.dims[2] == p->query_length &&
                      bias.dims[3] == p->total_length;
    if (!fits)
      return bad_shape(kAttnAttentionBias, bias,
                       "[" + std::to_string(p->batch) + " or 1, " + std::to_string(p->q_heads) + " or 1, " +
                           std::to_string(p->query_length) + ", " + std::to_string(p->total_length) + "]");
    p->bias_batch = bias.dims[0];
    p->bias_heads = bias.dims[1];
  }

  p->has_sink = in[kAttnHeadSink].present();
  if (p->has_sink && !is_shape(in[kAttnHeadSink], {p->q_heads}))
    return bad_shape(kAttnHeadSink, in[kAttnHeadSink], list({p->q_heads}));

  p->softmax_mode = attributes.softmax_mode;
  if (p->softmax_mode != SoftmaxMode::unified) return {};
  if (!in[kAttnPhi].present()) return bad("softmax_mode is \"unified\" but phi is missing");
  if (!is_shape(in[kAttnPhi], {p->q_heads})) return bad_shape(kAttnPhi, in[kAttnPhi], list({p->q_heads}));
  if (!std::isfinite(attributes.phi_lower) || !std::isfinite(attributes.phi_upper) || !(attributes.phi_lower < 0) ||
      !(attributes.phi_upper > 0))
    return bad("phi_lower is " + std::to_string(attributes.phi_lower) + " and phi_upper " +
               std::to_string(attributes.phi_upper) + ", expected finite numbers below and above 0");
  p->phi_lower = attributes.phi_lower;
  p->phi_upper = attributes.phi_upper;
  return {};
}

Status check_rotary(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* p) {
  if (!attributes.do_rotary) return {};
  const TensorView& cos = in[kAttnCosCache];
  const TensorView& sin = in[kAttnSinCache];
  if (!cos.present()) return bad("do_rotary is 1 but cos_cache and sin_cache are missing");
  if (cos.rank != 2) return bad_shape(kAttnCosCache, cos, "rank 2: [positions, rotary_dim / 2]");
  if (!is_shape(sin, {cos.dims[0], cos.dims[1]}))
    return bad_shape(kAttnSinCache, sin, "cos_cache's " + shape_string(cos));
  p->rotary_dim = 2 * cos.dims[1];
  if (attributes.rotary_embedding_dim != 0 && attributes.rotary_embedding_dim != p->rotary_dim)
    return bad("rotary_embedding_dim is " + std::to_string(attributes.rotary_embedding_dim) + " but cos_cache " +
               shape_string(cos) + " rotates " + std::to_string(p->rotary_dim) + " columns");
  if (p->rotary_dim > p->head_size || p->rotary_dim % 8 != 0 || p->rotary_dim == 0)
    return bad("cos_cache " + shape_string(cos) + " rotates " + std::to_string(p->rotary_dim) +
               " columns, expected a multiple of 8 up to the head size " + std::to_string(p->head_size));
  p->rotary_positions = cos.dims[0];
  const TensorView& positions = in[kAttnPositionIds];
  p->has_position_ids = positions.present();
  if (p->has_position_ids && !is_shape(positions, {p->batch, p->query_length}))
    return bad_shape(kAttnPositionIds, positions, list({p->batch, p->query_length}));
  if (!p->has_position_ids && cos.dims[0] < p->total_length)
    return bad("cos_cache has " + std::to_string(cos.dims[0]) + " positions, fewer than total_sequence_length " +
               std::to_string(p->total_length));
  p->rotary_interleaved = attributes.rotary_interleaved;
  return {};
}

}  // namespace

const char* softmax_mode_name(SoftmaxMode mode) {
  switch (mode) {
    case SoftmaxMode::unified: return "unified";
    case SoftmaxMode::lazy: return "lazy";
    case SoftmaxMode::online: return "online";
  }
  return "?";
}

Status parse_softmax_mode(const std::string& text, SoftmaxMode* out) {
  for (SoftmaxMode mode : {SoftmaxMode::unified, SoftmaxMode::lazy, SoftmaxMode::online}) {
    if (text == softmax_mode_name(mode)) {
      *out = mode;
      return {};
    }
  }
  return bad("softmax_mode is \"" + text + "\", expected \"unified\", \"lazy\" or \"online\"");
}

const char* cache_quantization_name(CacheQuantization quantization) {
  switch (quantization) {
    case CacheQuantization::none: return "NONE";
    case CacheQuantization::per_tensor: return "PER_TENSOR";
    case CacheQuantization::per_channel: return "PER_CHANNEL";
  }
  return "?";
}

Status parse_cache_quantization(const char* attribute, const std::string& text, CacheQuantization* out) {
  for (CacheQuantization q :
       {CacheQuantization::none, CacheQuantization::per_tensor, CacheQuantization::per_channel}) {
    if (text == cache_quantization_name(q)) {
      *out = q;
      return {};
    }
  }
  return bad(std::string(attribute) + " is \"" + text + "\", expected \"NONE\", \"PER_TENSOR\" or \"PER_CHANNEL\"");
}

Status check_attention(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* problem) {
  AttentionProblem p;
  FDPP_RETURN_IF_ERROR(check_presence(in));
  for (int i = 0; i < kAttnInputCount; ++i)
    if (!in[i].is_dense())
      return bad(std::string(input_name(i)) + " is " + layout_string(in[i]) + ", expected a dense row-major tensor");

  p.q_heads = attributes.num_heads;
  p.kv_heads = attributes.kv_num_heads;
  if (p.q_heads <= 0 || p.kv_heads <= 0 || p.q_heads % p.kv_heads != 0)
    return bad("num_heads " + std::to_string(p.q_heads) + " and kv_num_heads " + std::to_string(p.kv_heads) +
               ": expected positive numbers, the second dividing the first");

  const TensorView& query = in[kAttnQuery];
  p.dtype = query.dtype;
  p.cache_dtype = in[kAttnPastKey].present() ? in[kAttnPastKey].dtype : query.dtype;
  FDPP_RETURN_IF_ERROR(check_types(in, p.dtype, p.cache_dtype));

  if (query.rank != 3) return bad_shape(kAttnQuery, query, "rank 3: [batch, tokens, columns]");
  p.batch = query.dims[0];
  p.query_length = query.dims[1];
  p.packed_qkv = !in[kAttnKey].present();
  const int64_t heads = p.packed_qkv ? p.q_heads + 2 * p.kv_heads : p.q_heads;
  if (query.dims[2] <= 0 || query.dims[2] % heads != 0) {
    const std::string divisor = std::to_string(heads) + (p.packed_qkv ? " packed" : "") + " heads";
    return bad_shape(kAttnQuery, query, "a last dimension that " + divisor + " divide");
  }
  p.head_size = query.dims[2] / heads;
  if (p.head_size % 8 != 0 || p.head_size > kMaxHeadSize)
    return not_supported("FdppAttention: head size " + std::to_string(p.head_size) + " (query " + shape_string(query) +
                         " over " + std::to_string(heads) + " heads) is not a multiple of 8 up to " +
                         std::to_string(kMaxHeadSize));
  if (!p.packed_qkv) {
    for (int i : {kAttnKey, kAttnValue})
      if (!is_shape(in[i], {p.batch, p.query_length, p.kv_heads * p.head_size}))
        return bad_shape(i, in[i], list({p.batch, p.query_length, p.kv_heads * p.head_size}));
  }

  if (!is_shape(in[kAttnSeqlensK], {p.batch}) && !is_shape(in[kAttnSeqlensK], {p.batch, 1}))
    return bad_shape(kAttnSeqlensK, in[kAttnSeqlensK], list({p.batch}));
  const TensorView& total = in[kAttnTotalSequenceLength];
  if (total.elements() != 1) return bad_shape(kAttnTotalSequenceLength, total, "one element");
  if (total.data == nullptr) return bad("total_sequence_length has no data in host memory");
  p.total_length = *static_cast<const int32_t*>(total.data);
  if (p.total_length < p.query_length)
    return bad("total_sequence_length is " + std::to_string(p.total_length) + ", less than the " +
               std::to_string(p.query_length) + " new tokens of query " + shape_string(query));
  p.prompt = p.total_length == p.query_length;

  const TensorView& past = in[kAttnPastKey];
  if (past.present()) {
    if (past.rank != 4 || past.dims[0] != p.batch || past.dims[1] != p.kv_heads || past.dims[3] != p.head_size)
      return bad_shape(kAttnPastKey, past,
                       "[" + std::to_string(p.batch) + ", " + std::to_string(p.kv_heads) + ", capacity, " +
                           std::to_string(p.head_size) + "]");
    if (!is_shape(in[kAttnPastValue], {past.dims[0], past.dims[1], past.dims[2], past.dims[3]}))
      return bad_shape(kAttnPastValue, in[kAttnPastValue], "past_key's " + shape_string(past));
    p.past_capacity = past.dims[2];
  }
  if (!p.prompt && p.past_capacity < p.total_length - p.query_length)
    return bad("past_key " + shape_string(past) + " holds fewer than the " +
               std::to_string(p.total_length - p.query_length) + " past tokens that total_sequence_length " +
               std::to_string(p.total_length) + " stands for");
  p.capacity = std::max(p.past_capacity, p.total_length);

  FDPP_RETURN_IF_ERROR(check_rotary(attributes, in, &p));
  FDPP_RETURN_IF_ERROR(check_quantization(attributes, in, &p));
  FDPP_RETURN_IF_ERROR(check_extras(attributes, in, &p));

  if (!std::isfinite(attributes.scale) || attributes.scale < 0)
    return bad("scale is " + std::to_string(attributes.scale) + ", expected a finite number of at least 0");
  if (!std::isfinite(attributes.softcap) || attributes.softcap < 0)
    return bad("softcap is " + std::to_string(attributes.softcap) + ", expected a finite number of at least 0");
  if (attributes.local_window_size < -1 || attributes.local_window_size == 0)
    return bad("local_window_size is " + std::to_string(attributes.local_window_size) +
               ", expected -1 (no window) or a positive number");
  p.scale = attributes.scale != 0 ? attributes.scale : 1.0f / std::sqrt(static_cast<float>(p.head_size));
  p.softcap = attributes.softcap;
  p.window = attributes.local_window_size;
  *problem = p;
  return {};
}

Status check_seqlens(const AttentionProblem& p, const int32_t* seqlens_k) {
  const int64_t fewest = p.prompt ? 1 : p.query_length;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = static_cast<int64_t>(seqlens_k[b]) + 1;
    if (length < fewest || length > p.total_length)
      return bad("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(seqlens_k[b]) + ", expected " +
                 std::to_string(fewest - 1) + " to " + std::to_string(p.total_length - 1) + " (" +
                 std::to_string(p.query_length) + " new tokens, total_sequence_length " +
                 std::to_string(p.total_length) + ")");
  }
  return {};
}

Status check_position_ids(const AttentionProblem& p, const int64_t* position_ids) {
  if (!p.has_position_ids) return {};
  for (int64_t i = 0; i < p.batch * p.query_length; ++i) {
    if (position_ids[i] < 0 || position_ids[i] >= p.rotary_positions)
      return bad("position_ids[" + std::to_string(i / p.query_length) + ", " + std::to_string(i % p.query_length) +
                 "] is " + std::to_string(position_ids[i]) + ", expected 0 to " +
                 std::to_string(p.rotary_positions - 1) + ", a row of cos_cache");
  }
  return {};
}

std::string describe(const AttentionProblem& p) {
  return "B=" + std::to_string(p.batch) + " S=" + std::to_string(p.query_length) + " total=" +
         std::to_string(p.total_length) + " L=" + std::to_string(p.capacity) + " heads=" + std::to_string(p.q_heads) +
         "/" + std::to_string(p.kv_heads) + " D=" + std::to_string(p.head_size) + " " + dtype_name(p.dtype) + " cache " +
         dtype_name(p.cache_dtype) + " " + softmax_mode_name(p.softmax_mode);
}

}  // namespace fdpp
