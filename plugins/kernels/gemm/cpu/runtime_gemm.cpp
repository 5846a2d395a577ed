// Many rows: the calling runtime's own matrix product, which blocks both operands for the caches. Weights of fewer than
// 32 bits become float32 for it piece by piece.
#include <algorithm>

#include "kernels/gemm/cpu/checks.h"
#include "kernels/gemm/cpu/kernels.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int64_t kPieceElements = 1 << 20;  // of B, dequantised at a time: 4 MB

bool supports(const GemmProblem& p, const DeviceInfo& device, std::string* why) {
  if (!device.host_gemm) {
    *why = "the calling runtime lends no matrix product";
    return false;
  }
  if (product_row_stride(p) != p.k) {
    *why = "takes rows of A that are neighbours";
    return false;
  }
  return takes_dtype(p, why);
}

// How Y's columns are worked off, and what the workspace holds for that.
struct Pieces {
  int64_t columns;           // of Y at a time
  bool wide;                 // B is float32 as it is
  float* a = nullptr;        // [M, K]: A after the norm
  float* b = nullptr;        // [columns, K]: rows of B in float32
  float* product = nullptr;  // [M, columns]: unless that is all of Y
  float* up = nullptr;       // [M, columns]: what silu_mul gates
  size_t bytes = 0;

  Pieces(const GemmProblem& p, void* workspace)
      : columns(std::clamp<int64_t>(kPieceElements / p.k, 1, p.n)), wide(p.weight_format == WeightFormat::f32) {
    if (wide) columns = p.n;
    const auto take = [&](float** part, int64_t count) {
      if (workspace != nullptr) *part = static_cast<float*>(workspace) + bytes / sizeof(float);
      bytes += static_cast<size_t>(count) * sizeof(float);
    };
    if (p.has_norm()) take(&a, p.m * p.k);
    if (!wide) take(&b, columns * p.k);
    if (columns < p.n) take(&product, p.m * columns);
    if (p.activation == Activation::silu_mul) take(&up, p.m * columns);
  }
};

size_t workspace_bytes(const GemmProblem& p, const GemmSplit&) { return Pieces(p, nullptr).bytes; }

const GemmSteps& steps() {
#if FDPP_X86
  switch (cpu_device().isa) {
    case CpuIsa::avx512: return kAvx512Steps;
    case CpuIsa::avx2: return kAvx2Steps;
    case CpuIsa::scalar: break;
  }
#endif
  return kScalarSteps;
}

Status run(const GemmParams& params, const GemmSplit&, void* workspace, const ExecutionContext& context) {
  const GemmProblem& p = params.problem;
  const HostRuntime* host = context.host;
  if (host == nullptr || host->gemm == nullptr)
    return invalid_argument("FdppFlatGemm: cpu_runtime_gemm was planned but the runtime lends no matrix product");
  const Pieces pieces(p, workspace);
  const float* a = static_cast<const float*>(params.a);
  if (p.has_norm()) {
    steps().normalise(params, pieces.a, host);
    a = pieces.a;
  }
  float* const y = static_cast<float*>(params.y);
  const bool raw = !p.has_bias && !p.has_residual && p.activation == Activation::none;

  const auto multiply = [&](int64_t first, int64_t rows, float* to) {
    const float* b = static_cast<const float*>(params.b) + (pieces.wide ? first * p.k : 0);
    if (!pieces.wide) {
      steps().dequantise(params, first, rows, pieces.b, host);
      b = pieces.b;
    }
    return host->gemm(host->state, p.m, rows, p.k, a, b, to);
  };
  for (int64_t first = 0; first < p.n; first += pieces.columns) {
    const int64_t columns = std::min(pieces.columns, p.n - first);
    float* const product = pieces.product != nullptr ? pieces.product : y;
    FDPP_RETURN_IF_ERROR(multiply(first, columns, product));
    if (pieces.up != nullptr) FDPP_RETURN_IF_ERROR(multiply(p.n + first, columns, pieces.up));
    if (product != y || !raw) steps().finish(params, first, columns, product, pieces.up, columns, host);
  }
  return {};
}

}  // namespace

extern const GemmVariant kCpuRuntimeGemm;
const GemmVariant kCpuRuntimeGemm = {
    "cpu_runtime_gemm",
    Backend::cpu,
    GemmKind::large,
    "the calling runtime's matrix product, smaller weights turned into float32",
    supports,
    one_split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
