// FdppAttention in TensorRT. The caches are of fixed capacity: present has past's shape and, where TensorRT shares buffers,
// its memory.
#include <algorithm>

#include "fdpp/attention.h"
#include "fdpp/read_attributes.h"
#include "tensorrt/plugin_core.h"

namespace fdpp::trt {
namespace {

class AttentionCore final : public PluginCore {
 public:
  explicit AttentionCore(Fields fields) : PluginCore(attention_spec(), std::move(fields)) {}

  nvinfer1::DimsExprs output_shape(int output, const nvinfer1::DimsExprs* inputs,
                                   nvinfer1::IExprBuilder& builder) const override {
    if (output != kAttnOutput) return inputs[dense().find(output == kAttnPresentKey ? kAttnPastKey : kAttnPastValue)];
    nvinfer1::DimsExprs y = inputs[0];
    if (dense().find(kAttnKey) < 0 && y.nbDims == 3) {  // packed: query heads, then those of keys and values
      const auto multiplied = builder.operation(nvinfer1::DimensionOperation::kPROD, *y.d[2],
                                                *builder.constant(attributes_.num_heads));
      y.d[2] = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *multiplied,
                                 *builder.constant(attributes_.num_heads + 2 * attributes_.kv_num_heads));
    }
    return y;
  }

  Status check(const TensorView* largest) const override {
    AttentionProblem problem;
    int32_t total = 0;
    return expand(largest, &problem, nullptr, &total);
  }

  Status run(const TensorView* inputs, const TensorView* outputs, void* workspace, void* stream,
             const CallState& state) const override {
    FDPP_RETURN_IF_ERROR(state.fault->take(spec().name));
    TensorView op_inputs[kAttnInputCount];
    AttentionProblem problem;
    int32_t total = 0;
    FDPP_RETURN_IF_ERROR(expand(inputs, &problem, op_inputs, &total));
    AttentionPlan plan;
    const auto plan_with = [&](const std::string& variant, AttentionPlan* made) {
      return plan_attention(problem, *state.device, made, variant);
    };
    FDPP_RETURN_IF_ERROR(plan_call(state, plan_with, &plan));
    state.slot->record(problem, plan);
    ExecutionContext execution;
    execution.stream = stream;
    execution.fault = state.fault->device_word();
    if (problem.softmax_mode == SoftmaxMode::unified)
      FDPP_RETURN_IF_ERROR(state.slot->counter(*state.device, &execution.out_of_range_rows));
    return run_attention(problem, plan, op_inputs, outputs, workspace, execution);
  }

 protected:
  Status largest_workspace(const TensorView* largest, const DeviceInfo& device, size_t* bytes) const override {
    *bytes = 0;
    AttentionProblem problem;
    int32_t total = 0;
    FDPP_RETURN_IF_ERROR(expand(largest, &problem, nullptr, &total));
    const AttentionProblem most = problem;
    const auto ask = [&](const std::string& variant) -> Status {
      AttentionPlan plan;
      const Status status = plan_attention(problem, device, &plan, variant);
      if (status.ok()) *bytes = std::max(*bytes, plan.workspace_bytes);
      return status.code() == StatusCode::not_supported && !variant.empty() ? Status() : status;
    };
    // Splits come and go with the batch and the context: the workspace does not only grow with them.
    for (int64_t batch = 1; batch <= most.batch; ++batch) {
      for (int64_t length : {int64_t{1}, most.query_length}) {
        for (int64_t context = most.total_length;; context = std::max(context * 3 / 4, length)) {
          problem = most;
          problem.batch = batch;
          problem.query_length = length;
          problem.total_length = context;
          problem.prompt = context == length;
          if (problem.bias_batch > 1) problem.bias_batch = batch;
          FDPP_RETURN_IF_ERROR(ask(""));
          if (timed())
            for (const Tactic& tactic : tactics(spec())) FDPP_RETURN_IF_ERROR(ask(tactic.variant));
          if (context == length) break;
        }
      }
    }
    return {};
  }

  Status read() override {
    FDPP_RETURN_IF_ERROR(read_attributes(fields(), &attributes_));
    for (int input : {kAttnPastKey, kAttnPastValue})
      if (dense().find(input) < 0)
        return not_supported(std::string(spec().name) + ": " + spec().inputs[static_cast<size_t>(input)].name +
                             " is missing: TensorRT gets caches of fixed capacity");
    if (attributes_.num_heads <= 0 || attributes_.kv_num_heads <= 0)
      return invalid_argument(std::string(spec().name) + ": num_heads is " + std::to_string(attributes_.num_heads) +
                              " and kv_num_heads is " + std::to_string(attributes_.kv_num_heads) +
                              ", expected positive numbers");
    return {};
  }
  DType fixed_type(int) const override { return DType::undefined; }

 private:
  Status expand(const TensorView* given, AttentionProblem* problem, TensorView* expanded, int32_t* total) const {
    TensorView own[kAttnInputCount];
    TensorView* const inputs = expanded != nullptr ? expanded : own;
    FDPP_RETURN_IF_ERROR(expand_attention(dense(), given, total, inputs));
    FDPP_RETURN_IF_ERROR(check_attention(attributes_, inputs, problem));
    if (problem->capacity == problem->past_capacity) return {};
    return invalid_argument(std::string(spec().name) + ": total_sequence_length is " + std::to_string(*total) +
                            ", more than past_key's capacity " + std::to_string(problem->past_capacity));
  }

  AttentionAttributes attributes_;
};

}  // namespace

std::unique_ptr<PluginCore> make_attention_core(Fields fields) {
  return std::make_unique<AttentionCore>(std::move(fields));
}

}  // namespace fdpp::trt
