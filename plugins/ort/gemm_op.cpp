// FdppFlatGemm in ONNX Runtime.
#include "fdpp/gemm.h"

#include <algorithm>

#include "fdpp/dispatch.h"
#include "fdpp/read_attributes.h"
#include "ort/custom_op.h"
#include "ort/dense_op.h"
#include "ort/host_runtime.h"

namespace fdpp::ort {
namespace {

class GemmKernel : public Kernel {
 public:
  Status open(const NodeInfo& node, Backend backend, Form form) {
    FDPP_RETURN_IF_ERROR(home_.open(node, backend, backend == Backend::cpu));
    FDPP_RETURN_IF_ERROR(read_attributes(node, &attributes_));
    if (form == Form::dense) {
      FDPP_RETURN_IF_ERROR(read_dense_inputs(node, gemm_spec(), &dense_));
      FDPP_RETURN_IF_ERROR(check_gemm_attributes(attributes_, &layout_));
    }
    std::string name;
    FDPP_RETURN_IF_ERROR(node.name(&name));
    slot_ = &PlanSlot::of(gemm_spec().name, name);
    return backend == Backend::cpu ? gemm_.create(node) : Status();
  }

  Status compute(const CallContext& context) const override {
    TensorView given[kGemmInputCount], inputs[kGemmInputCount];
    FDPP_RETURN_IF_ERROR(context.inputs(dense_ ? given : inputs, kGemmInputCount));
    if (dense_) FDPP_RETURN_IF_ERROR(expand_gemm(*dense_, layout_, given, inputs));
    GemmProblem problem;
    FDPP_RETURN_IF_ERROR(check_gemm(attributes_, inputs, &problem));

    const bool on_cpu = home_.backend() == Backend::cpu;
    const DeviceInfo* device = nullptr;
    FDPP_RETURN_IF_ERROR(home_.device(&device));
    GemmPlan plan;
    FDPP_RETURN_IF_ERROR(plan_gemm(problem, *device, &plan));
    slot_->record(problem, plan);

    TensorView y;
    int64_t dims[TensorView::kMaxRank];
    std::copy_n(inputs[kGemmA].dims, inputs[kGemmA].rank, dims);
    dims[inputs[kGemmA].rank - 1] = problem.n;
    FDPP_RETURN_IF_ERROR(context.output(kGemmY, problem.dtype, dims, inputs[kGemmA].rank, &y));

    Workspace workspace(context, home_.allocator(), !on_cpu);
    FDPP_RETURN_IF_ERROR(workspace.allocate(plan.workspace_bytes));
    const CallHost host(context, &gemm_);
    ExecutionContext execution;
    if (on_cpu) {
      execution.host = host.get();
    } else {
      FDPP_RETURN_IF_ERROR(context.gpu_stream(&execution.stream));
    }
    return run_gemm(problem, plan, inputs, &y, workspace.data(), execution);
  }

 private:
  KernelHome home_;
  GemmAttributes attributes_;
  std::unique_ptr<DenseInputs> dense_;  // null: the plain form
  GemmProblem layout_;                  // of the dense form: what of a problem the attributes say
  RuntimeGemm gemm_;
  PlanSlot* slot_ = nullptr;
};

}  // namespace

Status make_gemm_kernel(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel) {
  auto made = std::make_unique<GemmKernel>();
  FDPP_RETURN_IF_ERROR(made->open(node, backend, form));
  *kernel = std::move(made);
  return {};
}

}  // namespace fdpp::ort
