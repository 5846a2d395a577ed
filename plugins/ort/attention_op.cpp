// FdppAttention in ONNX Runtime.
#include "fdpp/attention.h"

#include "fdpp/dispatch.h"
#include "fdpp/read_attributes.h"
#include "ort/custom_op.h"
#include "ort/dense_op.h"
#include "ort/host_runtime.h"

namespace fdpp::ort {
namespace {

class AttentionKernel : public Kernel {
 public:
  Status open(const NodeInfo& node, Backend backend, Form form) {
    FDPP_RETURN_IF_ERROR(home_.open(node, backend, false));
    FDPP_RETURN_IF_ERROR(read_attributes(node, &attributes_));
    if (form == Form::dense) FDPP_RETURN_IF_ERROR(read_dense_inputs(node, attention_spec(), &dense_));
    std::string name;
    FDPP_RETURN_IF_ERROR(node.name(&name));
    slot_ = &PlanSlot::of(attention_spec().name, name);
    return backend == Backend::cpu ? Status() : fault_.create();
  }

  Status compute(const CallContext& context) const override {
    FDPP_RETURN_IF_ERROR(fault_.take(attention_spec().name));

    TensorView given[kAttnInputCount], inputs[kAttnInputCount];
    FDPP_RETURN_IF_ERROR(context.inputs(dense_ ? given : inputs, kAttnInputCount));
    int32_t total = 0;
    if (dense_) FDPP_RETURN_IF_ERROR(expand_attention(*dense_, given, &total, inputs));
    AttentionProblem problem;
    FDPP_RETURN_IF_ERROR(check_attention(attributes_, inputs, &problem));

    const bool on_cpu = home_.backend() == Backend::cpu;
    if (on_cpu) {
      FDPP_RETURN_IF_ERROR(check_seqlens(problem, static_cast<const int32_t*>(inputs[kAttnSeqlensK].data)));
      FDPP_RETURN_IF_ERROR(check_position_ids(problem, static_cast<const int64_t*>(inputs[kAttnPositionIds].data)));
    }
    const DeviceInfo* device = nullptr;
    FDPP_RETURN_IF_ERROR(home_.device(&device));
    AttentionPlan plan;
    FDPP_RETURN_IF_ERROR(plan_attention(problem, *device, &plan));
    slot_->record(problem, plan);

    TensorView outputs[kAttnOutputCount];
    const int64_t out_dims[] = {problem.batch, problem.query_length, problem.q_heads * problem.head_size};
    const int64_t cache_dims[] = {problem.batch, problem.kv_heads, problem.capacity, problem.head_size};
    FDPP_RETURN_IF_ERROR(context.output(kAttnOutput, problem.dtype, out_dims, 3, &outputs[kAttnOutput]));
    for (int i : {kAttnPresentKey, kAttnPresentValue})
      FDPP_RETURN_IF_ERROR(context.output(i, problem.cache_dtype, cache_dims, 4, &outputs[i]));

    Workspace workspace(context, home_.allocator(), !on_cpu);
    FDPP_RETURN_IF_ERROR(workspace.allocate(plan.workspace_bytes));
    const CallHost host(context, nullptr);
    ExecutionContext execution;
    if (on_cpu) {
      execution.host = host.get();
    } else {
      FDPP_RETURN_IF_ERROR(context.gpu_stream(&execution.stream));
      execution.fault = fault_.device_word();
    }
    if (problem.softmax_mode == SoftmaxMode::unified)
      FDPP_RETURN_IF_ERROR(slot_->counter(*device, &execution.out_of_range_rows));
    return run_attention(problem, plan, inputs, outputs, workspace.data(), execution);
  }

 private:
  KernelHome home_;
  AttentionAttributes attributes_;
  std::unique_ptr<DenseInputs> dense_;  // null: the plain form
  PlanSlot* slot_ = nullptr;
  mutable DeviceFault fault_;
};

}  // namespace

Status make_attention_kernel(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel) {
  auto made = std::make_unique<AttentionKernel>();
  FDPP_RETURN_IF_ERROR(made->open(node, backend, form));
  *kernel = std::move(made);
  return {};
}

}  // namespace fdpp::ort
