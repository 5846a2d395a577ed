#include "kernels/common/simd_avx2.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void gemv_avx2(const GemmParams& params, const HostRuntime* host) { run_gemm_kernel<Gemv>(params, host); }
void flat_avx2(const GemmParams& params, const HostRuntime* host) { run_gemm_kernel<Flat>(params, host); }

void widen_avx2(const void* from, DType dtype, float* to, int64_t count) { widen(from, dtype, to, count); }

}  // namespace fdpp
