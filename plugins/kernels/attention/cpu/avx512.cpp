#include "kernels/common/simd_avx512.h"

#include "kernels/attention/cpu/attention_impl.h"

namespace fdpp {

void attention_avx512(const AttentionParams& params, int num_splits, float* partials, const ExecutionContext& context) {
  run_attention_kernel(params, num_splits, partials, context);
}

}  // namespace fdpp
