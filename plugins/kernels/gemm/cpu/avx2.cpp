#include "kernels/common/simd_avx2.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void gemv_avx2(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_gemm_kernel<Gemv>(params, scratch, host);
}
void flat_avx2(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_gemm_kernel<Flat>(params, scratch, host);
}

const GemmSteps kAvx2Steps = {normalise, dequantise, finish};

}  // namespace fdpp
