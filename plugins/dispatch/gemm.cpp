// plan_gemm() and run_gemm(): selection and launch of FdppFlatGemm.
#include <cstdlib>

#include "dispatch/choice.h"
#include "dispatch/registry.h"
#include "dispatch/select.h"
#include "dispatch/split.h"
#include "fdpp/gemm.h"

namespace fdpp {

Status check_split(const GemmSplit& s) {
  const auto check = [](const char* name, int value, int least, int most) -> Status {
    if (value >= least && value <= most) return {};
    return invalid_argument(std::string("FdppFlatGemm: split's ") + name + " is " + std::to_string(value) +
                            ", expected " + std::to_string(least) + " to " + std::to_string(most));
  };
  FDPP_RETURN_IF_ERROR(check("pieces", s.pieces, 1, 64));
  FDPP_RETURN_IF_ERROR(check("rows", s.rows, 0, 1024));
  FDPP_RETURN_IF_ERROR(check("stages", s.stages, 0, 64));
  return check("algorithm", s.algorithm, 0, 15);
}

Status plan_gemm(const GemmProblem& problem, const DeviceInfo& device, GemmPlan* plan, const std::string& variant,
                 const GemmSplit* split) {
  const GemmChoice choice = choose_gemm(problem, device);
  // Where no variant of the wanted kind takes the problem, the nearest kind does.
  const auto distance = [&](const GemmVariant& v) {
    const int kinds = std::abs(static_cast<int>(v.kind) - static_cast<int>(choice.kind));
    return 2 * kinds + (v.suits != nullptr && !v.suits(problem, device) ? 1 : 0);
  };
  GemmPlan chosen;
  FDPP_RETURN_IF_ERROR(select_variant(gemm_spec().name, gemm_variants(), problem, device, variant, choice.variant,
                                      distance, choice.reason, &chosen.variant, &chosen.reason));
  if (split != nullptr) FDPP_RETURN_IF_ERROR(check_split(*split));
  chosen.split = split != nullptr            ? *split
                 : is_choice(choice, chosen) ? choice.split
                                             : chosen.variant->split(problem, device);
  chosen.workspace_bytes = chosen.variant->workspace_bytes(problem, chosen.split);
  *plan = chosen;
  return {};
}

Status gemm_splits(const GemmProblem& problem, const DeviceInfo& device, const std::string& variant,
                   std::vector<GemmSplit>* splits) {
  GemmPlan plan;
  FDPP_RETURN_IF_ERROR(plan_gemm(problem, device, &plan, variant));
  list_splits(plan, problem, device, splits);
  return {};
}

const char* variant_name(const GemmPlan& plan) { return plan.variant->name; }

Status run_gemm(const GemmProblem& problem, const GemmPlan& plan, const TensorView* inputs, const TensorView* outputs,
                void* workspace, const ExecutionContext& context) {
  if (problem.m == 0) return {};
  GemmParams params;
  params.problem = problem;
  params.a = inputs[kGemmA].data;
  params.b = inputs[kGemmB].data;
  params.scales = inputs[kGemmScales].data;
  params.zero_points = inputs[kGemmZeroPoints].data;
  params.bias = inputs[kGemmBias].data;
  params.residual = inputs[kGemmResidual].data;
  params.norm_weight = inputs[kGemmNormWeight].data;
  params.norm_bias = inputs[kGemmNormBias].data;
  if (const TensorView& next = inputs[kGemmNextWeight]; next.present()) {
    params.next_weight = next.data;
    params.next_weight_bytes = next.elements() * static_cast<int64_t>(dtype_size(next.dtype));
  }
  params.y = outputs[kGemmY].data;
  return plan.variant->run(params, plan.split, workspace, context);
}

}  // namespace fdpp
