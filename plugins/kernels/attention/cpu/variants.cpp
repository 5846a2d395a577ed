// The registry's entries for the CPU's attention kernels.
#include <algorithm>

#include "kernels/attention/cpu/kernels.h"
#include "kernels/attention/variant.h"

namespace fdpp {
namespace {

template <CpuIsa isa>
bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (device.isa < isa) {
    *why = std::string("needs ") + cpu_isa_name(isa) + ", the processor has " + cpu_isa_name(device.isa);
    return false;
  }
  const DType c = p.cache_dtype;
  const bool known = (p.dtype == DType::f32 && (c == DType::f32 || c == DType::f16 || p.quantized())) ||
                     (p.dtype == DType::f16 && c == DType::f16);
  if (!known)
    *why = std::string("takes float32 with a float32, float16, int8 or float8e4m3fn cache, or float16 with a float16 "
                       "cache, not ") +
           dtype_name(p.dtype) + " with " + dtype_name(c);
  return known;
}

// Splits only where batch and heads alone do not keep the threads busy; pieces shorter than this cost more in merging.
AttentionSplit split(const AttentionProblem& p, const DeviceInfo& device) {
  constexpr int64_t kShortestPiece = 128;
  constexpr int64_t kRowsOfTile = 64;
  if (device.threads <= 1 || p.batch == 0) return {};
  const int64_t tiles = p.batch * p.kv_heads * ((p.query_length * p.group() + kRowsOfTile - 1) / kRowsOfTile);
  const int64_t wanted = (4 * device.threads + tiles - 1) / std::max<int64_t>(tiles, 1);
  const int64_t context = p.window > 0 ? std::min(p.total_length, p.window + p.query_length) : p.total_length;
  AttentionSplit s;
  s.pieces = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(context / kShortestPiece, 1)));
  return s;
}

size_t workspace_bytes(const AttentionProblem& p, const AttentionSplit& split) {
  const int64_t splits = split.pieces;
  if (splits == 1) return 0;
  return sizeof(float) * static_cast<size_t>(p.batch * p.query_length * p.q_heads * splits * (p.head_size + 2));
}

template <AttentionKernel kernel>
Status run(const AttentionParams& params, const AttentionSplit& split, void* workspace,
           const ExecutionContext& context) {
  kernel(params, split.pieces, static_cast<float*>(workspace), context);
  return {};
}

template <CpuIsa isa, AttentionKernel kernel>
constexpr AttentionVariant variant(const char* name, const char* summary) {
  return {name, Backend::cpu, summary, supports<isa>, split, workspace_bytes, run<kernel>};
}

}  // namespace

#if FDPP_X86
extern const AttentionVariant kCpuAvx512Attention;
extern const AttentionVariant kCpuAvx2Attention;
const AttentionVariant kCpuAvx512Attention = variant<CpuIsa::avx512, attention_avx512>(
    "cpu_avx512", "AVX-512, register-blocked tiles of query rows by keys, split over heads, rows and context");
const AttentionVariant kCpuAvx2Attention = variant<CpuIsa::avx2, attention_avx2>(
    "cpu_avx2", "the same on AVX2 with FMA and F16C");
#endif
extern const AttentionVariant kCpuScalarAttention;
const AttentionVariant kCpuScalarAttention = variant<CpuIsa::scalar, attention_scalar>(
    "cpu_scalar", "the same in plain C++, for every processor");

}  // namespace fdpp
