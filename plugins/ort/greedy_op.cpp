// FdppGreedyStep in ONNX Runtime.
#include "fdpp/greedy_step.h"
#include "ort/custom_op.h"

namespace fdpp::ort {
namespace {

class GreedyKernel : public Kernel {
 public:
  explicit GreedyKernel(Backend backend) : backend_(backend) {}

  Status compute(const CallContext& context) const override {
    TensorView inputs[kGreedyInputCount], outputs[kGreedyOutputCount];
    FDPP_RETURN_IF_ERROR(context.inputs(inputs, kGreedyInputCount));
    GreedyStep step;
    FDPP_RETURN_IF_ERROR(check_greedy_step(inputs, &step));
    const int64_t one[] = {step.batch, 1}, mask[] = {step.batch, step.capacity};
    FDPP_RETURN_IF_ERROR(context.output(kGreedyTokens, DType::i64, one, 2, &outputs[kGreedyTokens]));
    FDPP_RETURN_IF_ERROR(context.output(kGreedyNextPositions, DType::i64, one, 2, &outputs[kGreedyNextPositions]));
    FDPP_RETURN_IF_ERROR(context.output(kGreedyNextMask, DType::i64, mask, 2, &outputs[kGreedyNextMask]));
    FDPP_RETURN_IF_ERROR(context.output(kGreedyHostTokens, DType::i64, one, 2, &outputs[kGreedyHostTokens]));
    ExecutionContext execution;
    if (backend_ != Backend::cpu) FDPP_RETURN_IF_ERROR(context.gpu_stream(&execution.stream));
    return run_greedy_step(step, inputs, outputs, backend_, execution);
  }

 private:
  Backend backend_;
};

}  // namespace

Status make_greedy_kernel(const NodeInfo&, Backend backend, Form, std::unique_ptr<Kernel>* kernel) {
  *kernel = std::make_unique<GreedyKernel>(backend);
  return {};
}

}  // namespace fdpp::ort
