#include "kernels/common/simd_avx2.h"

#include "kernels/attention/cpu/attention_impl.h"

namespace fdpp {

void attention_avx2(const AttentionParams& params, int num_splits, float* partials, const ExecutionContext& context) {
  run_attention_kernel(params, num_splits, partials, context);
}

}  // namespace fdpp
