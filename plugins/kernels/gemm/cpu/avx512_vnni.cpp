// With the flag of the instructions that dot() of simd_avx512.h is for.
#include "kernels/common/simd_avx512.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void gemv_avx512_vnni(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_int8_kernel<Gemv>(params, scratch, host);
}
void flat_avx512_vnni(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host) {
  run_int8_kernel<Flat>(params, scratch, host);
}

}  // namespace fdpp
