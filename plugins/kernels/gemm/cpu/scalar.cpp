#include "kernels/common/simd_scalar.h"

#include "kernels/gemm/cpu/gemm_impl.h"

namespace fdpp {

void flat_scalar(const GemmParams& params, const HostRuntime* host) { run_gemm_kernel<Flat>(params, host); }

void widen_scalar(const void* from, DType dtype, float* to, int64_t count) { widen(from, dtype, to, count); }

}  // namespace fdpp
