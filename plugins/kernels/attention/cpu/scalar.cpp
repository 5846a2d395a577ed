#include "kernels/common/simd_scalar.h"

#include "kernels/attention/cpu/attention_impl.h"

namespace fdpp {

void attention_scalar(const AttentionParams& params, int num_splits, float* partials, const ExecutionContext& context) {
  run_attention_kernel(params, num_splits, partials, context);
}

}  // namespace fdpp
