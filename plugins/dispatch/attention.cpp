// plan_attention() and run_attention(): selection and launch of FdppAttention.
#include "dispatch/choice.h"
#include "dispatch/registry.h"
#include "dispatch/select.h"
#include "dispatch/split.h"
#include "fdpp/attention.h"

namespace fdpp {
namespace {

AttentionParams make_params(const AttentionProblem& p, const TensorView* in, const TensorView* out) {
  AttentionParams params;
  params.problem = p;

  const int64_t size = static_cast<int64_t>(dtype_size(p.dtype));
  const auto tokens = [&](void* data, int64_t heads_before, int64_t columns) {
    char* first = static_cast<char*>(data) + heads_before * p.head_size * size;
    return TokenView{first, p.query_length * columns, columns, p.head_size};
  };
  if (p.packed_qkv) {
    const int64_t columns = (p.q_heads + 2 * p.kv_heads) * p.head_size;
    params.query = tokens(in[kAttnQuery].data, 0, columns);
    params.new_key = tokens(in[kAttnQuery].data, p.q_heads, columns);
    params.new_value = tokens(in[kAttnQuery].data, p.q_heads + p.kv_heads, columns);
  } else {
    params.query = tokens(in[kAttnQuery].data, 0, p.q_heads * p.head_size);
    params.new_key = tokens(in[kAttnKey].data, 0, p.kv_heads * p.head_size);
    params.new_value = tokens(in[kAttnValue].data, 0, p.kv_heads * p.head_size);
  }
  params.output = tokens(out[kAttnOutput].data, 0, p.q_heads * p.head_size);

  const auto cache = [&](void* data, int64_t capacity) {
    return CacheView{data, p.kv_heads * capacity * p.head_size, capacity * p.head_size, p.head_size};
  };
  params.past_key = cache(in[kAttnPastKey].data, p.past_capacity);
  params.past_value = cache(in[kAttnPastValue].data, p.past_capacity);
  params.present_key = cache(out[kAttnPresentKey].data, p.capacity);
  params.present_value = cache(out[kAttnPresentValue].data, p.capacity);

  params.seqlens_k = static_cast<const int32_t*>(in[kAttnSeqlensK].data);
  params.cos_cache = p.rotary_dim ? in[kAttnCosCache].data : nullptr;
  params.sin_cache = p.rotary_dim ? in[kAttnSinCache].data : nullptr;
  params.position_ids = p.has_position_ids ? static_cast<const int64_t*>(in[kAttnPositionIds].data) : nullptr;
  params.attention_bias = in[kAttnAttentionBias].data;
  const int64_t bias_head = p.query_length * p.total_length;
  params.bias_batch_stride = p.bias_batch > 1 ? p.bias_heads * bias_head : 0;
  params.bias_head_stride = p.bias_heads > 1 ? bias_head : 0;
  params.head_sink = in[kAttnHeadSink].data;
  params.key_scale = static_cast<const float*>(in[kAttnKScale].data);
  params.value_scale = static_cast<const float*>(in[kAttnVScale].data);
  params.q_norm = in[kAttnQNorm].data;
  params.k_norm = in[kAttnKNorm].data;
  params.phi = static_cast<const float*>(in[kAttnPhi].data);
  return params;
}

}  // namespace

Status check_split(const AttentionSplit& s) {
  constexpr int kMost = 1 << 16;
  const auto bad = [](const char* name, int value, const char* expected) {
    return invalid_argument(std::string("FdppAttention: split's ") + name + " is " + std::to_string(value) +
                            ", expected " + expected);
  };
  if (s.pieces < 1 || s.pieces > kMost) return bad("pieces", s.pieces, "1 to 65536");
  if (s.cluster != 1 && s.cluster != 2 && s.cluster != 4 && s.cluster != 8)
    return bad("cluster", s.cluster, "1, 2, 4 or 8");
  if (s.blocks_per_multiprocessor < 1)
    return bad("blocks_per_multiprocessor", s.blocks_per_multiprocessor, "at least 1");
  return {};
}

Status plan_attention(const AttentionProblem& problem, const DeviceInfo& device, AttentionPlan* plan,
                      const std::string& variant, const AttentionSplit* split) {
  const AttentionChoice choice = choose_attention(problem, device);
  AttentionPlan chosen;
  FDPP_RETURN_IF_ERROR(select_variant(attention_spec().name, attention_variants(), problem, device, variant,
                                      choice.variant, [](const AttentionVariant&) { return 0; }, choice.reason,
                                      &chosen.variant, &chosen.reason));
  if (split != nullptr) FDPP_RETURN_IF_ERROR(check_split(*split));
  chosen.split = split != nullptr                     ? *split
                 : is_choice(choice, chosen)          ? choice.split
                                                      : chosen.variant->split(problem, device);
  chosen.workspace_bytes = chosen.variant->workspace_bytes(problem, chosen.split);
  *plan = chosen;
  return {};
}

Status attention_splits(const AttentionProblem& problem, const DeviceInfo& device, const std::string& variant,
                        std::vector<AttentionSplit>* splits) {
  AttentionPlan plan;
  FDPP_RETURN_IF_ERROR(plan_attention(problem, device, &plan, variant));
  list_splits(plan, problem, device, splits);
  return {};
}

const char* variant_name(const AttentionPlan& plan) { return plan.variant->name; }

Status run_attention(const AttentionProblem& problem, const AttentionPlan& plan, const TensorView* inputs,
                     const TensorView* outputs, void* workspace, const ExecutionContext& context) {
  if (problem.batch == 0 || problem.query_length == 0) return {};
  return plan.variant->run(make_params(problem, inputs, outputs), plan.split, workspace, context);
}

}  // namespace fdpp
