// FdppFlatGemm in TensorRT.
#include <algorithm>

#include "fdpp/gemm.h"
#include "fdpp/read_attributes.h"
#include "tensorrt/plugin_core.h"

namespace fdpp::trt {
namespace {

// Rows of A of which the workspace is asked: every small number, since kernels change among them, and some larger ones.
template <typename Ask>
Status for_numbers_up_to(int64_t most, const Ask& ask) {
  constexpr int64_t kEach = 160;
  for (int64_t m = 1; m < most; m = m < kEach ? m + 1 : m + m / 4) FDPP_RETURN_IF_ERROR(ask(m));
  return ask(most);
}

class GemmCore final : public PluginCore {
 public:
  explicit GemmCore(Fields fields) : PluginCore(gemm_spec(), std::move(fields)) {}

  nvinfer1::DimsExprs output_shape(int, const nvinfer1::DimsExprs* inputs,
                                   nvinfer1::IExprBuilder& builder) const override {
    nvinfer1::DimsExprs y = inputs[0];
    if (y.nbDims > 0) y.d[y.nbDims - 1] = builder.constant(attributes_.n);
    return y;
  }

  Status check(const TensorView* largest) const override {
    GemmProblem problem;
    return expand(largest, &problem, nullptr);
  }

  Status run(const TensorView* inputs, const TensorView* outputs, void* workspace, void* stream,
             const CallState& state) const override {
    TensorView op_inputs[kGemmInputCount];
    GemmProblem problem;
    FDPP_RETURN_IF_ERROR(expand(inputs, &problem, op_inputs));
    GemmPlan plan;
    const auto plan_with = [&](const std::string& variant, GemmPlan* made) {
      return plan_gemm(problem, *state.device, made, variant);
    };
    FDPP_RETURN_IF_ERROR(plan_call(state, plan_with, &plan));
    state.slot->record(problem, plan);
    ExecutionContext execution;
    execution.stream = stream;
    return run_gemm(problem, plan, op_inputs, outputs, workspace, execution);
  }

 protected:
  Status largest_workspace(const TensorView* largest, const DeviceInfo& device, size_t* bytes) const override {
    *bytes = 0;
    GemmProblem problem;
    FDPP_RETURN_IF_ERROR(expand(largest, &problem, nullptr));
    const auto ask = [&](int64_t m, const std::string& variant) -> Status {
      problem.m = m;
      GemmPlan plan;
      const Status status = plan_gemm(problem, device, &plan, variant);
      if (status.ok()) *bytes = std::max(*bytes, plan.workspace_bytes);
      return status.code() == StatusCode::not_supported && !variant.empty() ? Status() : status;
    };
    return for_numbers_up_to(std::max<int64_t>(problem.m, 1), [&](int64_t m) -> Status {
      FDPP_RETURN_IF_ERROR(ask(m, ""));
      if (timed())
        for (const Tactic& tactic : tactics(spec())) FDPP_RETURN_IF_ERROR(ask(m, tactic.variant));
      return {};
    });
  }

  Status read() override {
    FDPP_RETURN_IF_ERROR(read_attributes(fields(), &attributes_));
    return check_gemm_attributes(attributes_, &layout_);
  }
  DType fixed_type(int input) const override {
    const DType weights = weight_dtype(layout_.weight_format);
    const bool is_weight = input == kGemmB || input == kGemmNextWeight;
    if (input == kGemmZeroPoints || (is_weight && dtype_size(weights) == 1)) return DType::i32;
    return is_weight ? weights : DType::undefined;
  }

 private:
  Status expand(const TensorView* given, GemmProblem* problem, TensorView* expanded) const {
    TensorView own[kGemmInputCount];
    TensorView* const inputs = expanded != nullptr ? expanded : own;
    FDPP_RETURN_IF_ERROR(expand_gemm(dense(), layout_, given, inputs));
    return check_gemm(attributes_, inputs, problem);
  }

  GemmAttributes attributes_;
  GemmProblem layout_;  // what of a problem the attributes say
};

}  // namespace

std::unique_ptr<PluginCore> make_gemm_core(Fields fields) { return std::make_unique<GemmCore>(std::move(fields)); }

}  // namespace fdpp::trt
