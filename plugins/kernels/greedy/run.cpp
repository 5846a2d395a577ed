// A greedy step on a CPU, and which backend runs it: each has one kernel, so there is nothing to plan.
#include "kernels/greedy/params.h"

#include <cmath>

#include "kernels/common/float16.h"

namespace fdpp {
namespace {

template <typename T>
int64_t first_greatest(const T* logits, int64_t vocabulary) {
  int64_t best = 0;
  float greatest = to_float(logits[0]);
  for (int64_t i = 0; i < vocabulary; ++i) {
    const float value = to_float(logits[i]);
    if (std::isnan(value)) return kNoToken;
    if (value > greatest) best = i, greatest = value;
  }
  return best;
}

template <typename T>
void run_cpu(const GreedyParams& p) {
  const GreedyStep& step = p.step;
  for (int64_t row = 0; row < step.batch; ++row) {
    const int64_t token = first_greatest(static_cast<const T*>(p.logits) + row * step.vocabulary, step.vocabulary);
    p.host_tokens[row] = token;
    p.next_tokens[row] = token == kNoToken ? kAnyToken : token;
    const int64_t position = p.positions[row] + 1;
    p.next_positions[row] = position;
    for (int64_t i = 0; i < step.capacity; ++i) p.next_mask[row * step.capacity + i] = i <= position;
  }
}

}  // namespace

Status run_greedy_step(const GreedyStep& step, const TensorView* inputs, const TensorView* outputs, Backend backend,
                       const ExecutionContext& context) {
  const GreedyParams params{step,
                            inputs[kGreedyLogits].data,
                            static_cast<const int64_t*>(inputs[kGreedyPositions].data),
                            static_cast<int64_t*>(outputs[kGreedyTokens].data),
                            static_cast<int64_t*>(outputs[kGreedyNextPositions].data),
                            static_cast<int64_t*>(outputs[kGreedyNextMask].data),
                            static_cast<int64_t*>(outputs[kGreedyHostTokens].data)};
  if (step.batch == 0) return {};
#if FDPP_CUDA
  if (backend == Backend::cuda) return run_greedy_step_cuda(params, context.stream);
#endif
  if (backend != Backend::cpu)
    return not_supported(std::string(greedy_step_spec().name) + ": this build has no kernel for " + backend_name(backend));
  step.dtype == DType::f32 ? run_cpu<float>(params) : run_cpu<Half>(params);
  return {};
}

}  // namespace fdpp
