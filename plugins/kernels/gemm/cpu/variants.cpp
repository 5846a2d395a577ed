// The registry's entries for the CPU's own GEMM kernels.
#include <type_traits>

#include "kernels/gemm/cpu/checks.h"
#include "kernels/gemm/cpu/kernels.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// `vnni`: the member of DeviceInfo without which the variant does not run, and then it takes A as integers alone.
template <CpuIsa isa, GemmKind kind, bool DeviceInfo::*vnni>
bool supports(const GemmProblem& p, const DeviceInfo& device, std::string* why) {
  if (device.isa < isa) {
    *why = std::string("needs ") + cpu_isa_name(isa) + ", the processor has " + cpu_isa_name(device.isa);
    return false;
  }
  if constexpr (vnni != nullptr) {
    if (!(device.*vnni)) {
      *why = std::string("needs VNNI with ") + cpu_isa_name(isa) + ", which the processor has not";
      return false;
    }
    if (!p.rounds_a()) {
      *why = "takes int4 weights at accuracy_level 4 alone";
      return false;
    }
  }
  if (kind == GemmKind::gemv && p.m > kGemvRows) {
    *why = "takes up to " + std::to_string(kGemvRows) + " rows, not " + std::to_string(p.m);
    return false;
  }
  return takes_dtype(p, why);
}

size_t workspace_bytes(const GemmProblem& p, const GemmSplit&) { return gemm_scratch(p, nullptr).bytes; }

template <GemmKernel kernel>
Status run(const GemmParams& params, const GemmSplit&, void* workspace, const ExecutionContext& context) {
  kernel(params, gemm_scratch(params.problem, workspace), context.host);
  return {};
}

template <CpuIsa isa, GemmKind kind, GemmKernel kernel, bool DeviceInfo::*vnni = nullptr>
constexpr GemmVariant variant(const char* name, const char* summary) {
  return {name, Backend::cpu, kind, summary, supports<isa, kind, vnni>, one_split, workspace_bytes, run<kernel>};
}

}  // namespace

GemmScratch gemm_scratch(const GemmProblem& p, void* workspace) {
  constexpr int64_t kMostWordNumbers = 128;  // numbers in the widest vector of words
  constexpr int64_t kMostLanes = 16;
  constexpr size_t kAlignment = 64;
  GemmScratch s;
  const auto take = [&](auto** part, int64_t count, size_t size) {
    if (workspace != nullptr)
      *part = reinterpret_cast<std::remove_reference_t<decltype(*part)>>(static_cast<char*>(workspace) + s.bytes);
    s.bytes += (static_cast<size_t>(count) * size + kAlignment - 1) / kAlignment * kAlignment;
  };
  if (p.has_norm()) take(&s.a, p.m * p.k, sizeof(float));
  if (p.activation == Activation::silu_mul) take(&s.up, p.m * p.n, sizeof(float));
  if (p.rounds_a()) {
    s.padded = round_up(p.k, kMostWordNumbers);
    s.padded_blocks = round_up(p.blocks(), kMostLanes);
    take(&s.integers, p.m * s.padded, 1);
    take(&s.word_scales, p.m * s.padded / 8, sizeof(float));
    take(&s.block_sums, p.m * s.padded_blocks, sizeof(float));
  }
  return s;
}

#if FDPP_X86
extern const GemmVariant kCpuAvx512VnniGemv, kCpuAvx512VnniFlat, kCpuAvx512Gemv, kCpuAvx512Flat;
const GemmVariant kCpuAvx512VnniGemv =
    variant<CpuIsa::avx512, GemmKind::gemv, gemv_avx512_vnni, &DeviceInfo::avx512_vnni>(
        "cpu_avx512_vnni_gemv", "AVX-512 VNNI, int4 weights with A rounded to int8, up to four rows");
const GemmVariant kCpuAvx512VnniFlat =
    variant<CpuIsa::avx512, GemmKind::flat, flat_avx512_vnni, &DeviceInfo::avx512_vnni>(
        "cpu_avx512_vnni_flat", "AVX-512 VNNI, int4 weights with A rounded to int8, blocks of up to eight rows");
const GemmVariant kCpuAvx512Gemv = variant<CpuIsa::avx512, GemmKind::gemv, gemv_avx512>(
    "cpu_avx512_gemv", "AVX-512, streams B once for up to four rows");
const GemmVariant kCpuAvx512Flat = variant<CpuIsa::avx512, GemmKind::flat, flat_avx512>(
    "cpu_avx512_flat", "AVX-512, register blocks of up to eight rows by two to four of B");
extern const GemmVariant kCpuAvx2VnniGemv, kCpuAvx2VnniFlat, kCpuAvx2Gemv, kCpuAvx2Flat;
const GemmVariant kCpuAvx2VnniGemv = variant<CpuIsa::avx2, GemmKind::gemv, gemv_avx2_vnni, &DeviceInfo::avx_vnni>(
    "cpu_avx2_vnni_gemv", "AVX-VNNI, int4 weights with A rounded to int8, up to four rows");
const GemmVariant kCpuAvx2VnniFlat = variant<CpuIsa::avx2, GemmKind::flat, flat_avx2_vnni, &DeviceInfo::avx_vnni>(
    "cpu_avx2_vnni_flat", "AVX-VNNI, int4 weights with A rounded to int8, blocks of up to four rows");
const GemmVariant kCpuAvx2Gemv = variant<CpuIsa::avx2, GemmKind::gemv, gemv_avx2>(
    "cpu_avx2_gemv", "AVX2 with FMA and F16C, streams B once for up to four rows");
const GemmVariant kCpuAvx2Flat = variant<CpuIsa::avx2, GemmKind::flat, flat_avx2>(
    "cpu_avx2_flat", "AVX2 with FMA and F16C, register blocks of up to four rows by two to four of B");
#endif
extern const GemmVariant kCpuScalarFlat;
const GemmVariant kCpuScalarFlat = variant<CpuIsa::scalar, GemmKind::flat, flat_scalar>(
    "cpu_scalar_flat", "plain C++, for every processor");

}  // namespace fdpp
