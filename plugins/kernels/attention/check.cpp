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
  for (int i : {kAttnKey, kAttnValue, kAttnCosCache, kAttnSinCache, kAttnHeadSink})
    FDPP_RETURN_IF_ERROR(check_dtype(in, i, t));
  for (int i : {kAttnPastKey, kAttnPastValue}) FDPP_RETURN_IF_ERROR(check_dtype(in, i, c));
  for (int i : {kAttnSeqlensK, kAttnTotalSequenceLength}) FDPP_RETURN_IF_ERROR(check_dtype(in, i, DType::i32));
  return {};
}

Status check_presence(const TensorView* in) {
  for (int i : {kAttnQuery, kAttnSeqlensK, kAttnTotalSequenceLength})
    if (!in[i].present()) return bad(std::string(input_name(i)) + " is missing");
  for (auto [first, second] : {std::pair<int, int>{kAttnKey, kAttnValue},
                               {kAttnPastKey, kAttnPastValue},
                               {kAttnCosCache, kAttnSinCache}}) {
    if (in[first].present() != in[second].present())
      return bad(std::string(input_name(first)) + " and " + input_name(second) +
                 " must be given together; only one of them is");
  }
  for (int i : {kAttnPositionIds, kAttnAttentionBias, kAttnQNorm, kAttnKNorm, kAttnPhi})
    if (in[i].present()) return not_supported(std::string("FdppAttention: input ") + input_name(i) + " is not supported");
  return {};
}

Status check_rotary(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* p) {
  if (!attributes.do_rotary) return {};
  const TensorView& cos = in[kAttnCosCache];
  const TensorView& sin = in[kAttnSinCache];
  if (!cos.present()) return bad("do_rotary is 1 but cos_cache and sin_cache are missing");
  if (cos.rank != 2) return bad_shape(kAttnCosCache, cos, "rank 2: [positions, rotary_dim / 2]");
  if (!is_shape(sin, {cos.dims[0], cos.dims[1]})) return bad_shape(kAttnSinCache, sin, "cos_cache's " + shape_string(cos));
  p->rotary_dim = 2 * cos.dims[1];
  if (attributes.rotary_embedding_dim != 0 && attributes.rotary_embedding_dim != p->rotary_dim)
    return bad("rotary_embedding_dim is " + std::to_string(attributes.rotary_embedding_dim) + " but cos_cache " +
               shape_string(cos) + " rotates " + std::to_string(p->rotary_dim) + " columns");
  if (p->rotary_dim > p->head_size || p->rotary_dim % 8 != 0 || p->rotary_dim == 0)
    return bad("cos_cache " + shape_string(cos) + " rotates " + std::to_string(p->rotary_dim) +
               " columns, expected a multiple of 8 up to the head size " + std::to_string(p->head_size));
  if (cos.dims[0] < p->total_length)
    return bad("cos_cache has " + std::to_string(cos.dims[0]) + " positions, fewer than total_sequence_length " +
               std::to_string(p->total_length));
  p->rotary_interleaved = attributes.rotary_interleaved;
  return {};
}

}  // namespace

const char* softmax_mode_name(SoftmaxMode mode) { return mode == SoftmaxMode::lazy ? "lazy" : "online"; }

Status parse_softmax_mode(const std::string& text, SoftmaxMode* out) {
  for (SoftmaxMode mode : {SoftmaxMode::lazy, SoftmaxMode::online}) {
    if (text == softmax_mode_name(mode)) {
      *out = mode;
      return {};
    }
  }
  return bad("softmax_mode is \"" + text + "\", expected \"lazy\" or \"online\"");
}

Status check_attention(const AttentionAttributes& attributes, const TensorView* in, AttentionProblem* problem) {
  AttentionProblem p;
  FDPP_RETURN_IF_ERROR(check_presence(in));

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
  if (query.dims[2] <= 0 || query.dims[2] % heads != 0)
    return bad_shape(kAttnQuery, query,
                     "a last dimension that " + std::to_string(heads) + (p.packed_qkv ? " packed" : "") + " heads divide");
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
  p.has_sink = in[kAttnHeadSink].present();
  if (p.has_sink && !is_shape(in[kAttnHeadSink], {p.q_heads}))
    return bad_shape(kAttnHeadSink, in[kAttnHeadSink], list({p.q_heads}));

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
  p.softmax_mode = attributes.softmax_mode;
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

std::string describe(const AttentionProblem& p) {
  return "B=" + std::to_string(p.batch) + " S=" + std::to_string(p.query_length) + " total=" +
         std::to_string(p.total_length) + " L=" + std::to_string(p.capacity) + " heads=" + std::to_string(p.q_heads) +
         "/" + std::to_string(p.kv_heads) + " D=" + std::to_string(p.head_size) + " " + dtype_name(p.dtype) + " cache " +
         dtype_name(p.cache_dtype) + " " + softmax_mode_name(p.softmax_mode);
}

}  // namespace fdpp
