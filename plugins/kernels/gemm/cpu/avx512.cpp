#include "kernels/common/simd_avx512.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void gemv_avx512(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_gemm_kernel<Gemv>(params, scratch, host);
}
void flat_avx512(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_gemm_kernel<Flat>(params, scratch, host);
}

const GemmSteps kAvx512Steps = {normalise, dequantise, finish};

}  // namespace fdpp
