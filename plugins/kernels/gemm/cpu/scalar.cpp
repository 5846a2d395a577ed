#include "kernels/common/simd_scalar.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void flat_scalar(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_gemm_kernel<Flat>(params, scratch, host);
}

const GemmSteps kScalarSteps = {normalise, dequantise, finish};

}  // namespace fdpp
