// The registry's entries for the CPU's own GEMM kernels.
#include "kernels/gemm/cpu/checks.h"
#include "kernels/gemm/cpu/kernels.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

template <CpuIsa isa, GemmKind kind>
bool supports(const GemmProblem& p, const DeviceInfo& device, std::string* why) {
  if (device.isa < isa) {
    *why = std::string("needs ") + cpu_isa_name(isa) + ", the processor has " + cpu_isa_name(device.isa);
    return false;
  }
  if (kind == GemmKind::gemv && p.m > kGemvRows) {
    *why = "takes up to " + std::to_string(kGemvRows) + " rows, not " + std::to_string(p.m);
    return false;
  }
  return takes_dtypes(p, why);
}

size_t workspace_bytes(const GemmProblem&, const GemmSplit&) { return 0; }

template <GemmKernel kernel>
Status run(const GemmParams& params, const GemmSplit&, void*, const ExecutionContext& context) {
  kernel(params, context.host);
  return {};
}

template <CpuIsa isa, GemmKind kind, GemmKernel kernel>
constexpr GemmVariant variant(const char* name, const char* summary) {
  return {name, Backend::cpu, kind, summary, supports<isa, kind>, one_split, workspace_bytes, run<kernel>};
}

}  // namespace

#if FDPP_X86
extern const GemmVariant kCpuAvx512Gemv, kCpuAvx512Flat, kCpuAvx2Gemv, kCpuAvx2Flat;
const GemmVariant kCpuAvx512Gemv = variant<CpuIsa::avx512, GemmKind::gemv, gemv_avx512>(
    "cpu_avx512_gemv", "AVX-512, streams B once for up to four rows");
const GemmVariant kCpuAvx512Flat = variant<CpuIsa::avx512, GemmKind::flat, flat_avx512>(
    "cpu_avx512_flat", "AVX-512, register blocks of up to eight rows by three to four of B");
const GemmVariant kCpuAvx2Gemv = variant<CpuIsa::avx2, GemmKind::gemv, gemv_avx2>(
    "cpu_avx2_gemv", "AVX2 with FMA and F16C, streams B once for up to four rows");
const GemmVariant kCpuAvx2Flat = variant<CpuIsa::avx2, GemmKind::flat, flat_avx2>(
    "cpu_avx2_flat", "AVX2 with FMA and F16C, register blocks of up to four rows by three to four of B");
#endif
extern const GemmVariant kCpuScalarFlat;
const GemmVariant kCpuScalarFlat = variant<CpuIsa::scalar, GemmKind::flat, flat_scalar>(
    "cpu_scalar_flat", "plain C++, for every processor");

}  // namespace fdpp
