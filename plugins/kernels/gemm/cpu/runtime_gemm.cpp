// Many rows: the calling runtime's own matrix product, which blocks both operands for the caches. 16-bit weights are
// widened for it piece by piece.
#include <algorithm>
#include <cstring>

#include "kernels/common/parallel.h"
#include "kernels/gemm/cpu/checks.h"
#include "kernels/gemm/cpu/kernels.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int64_t kPieceElements = 1 << 20;  // of B, widened at a time: 4 MB
constexpr int64_t kWidenElements = 1 << 14;  // of B, widened by one task

bool supports(const GemmProblem& p, const DeviceInfo& device, std::string* why) {
  if (!device.host_gemm) {
    *why = "the calling runtime lends no matrix product";
    return false;
  }
  return takes_dtypes(p, why);
}

// Rows of B that are widened at a time.
int64_t piece_rows(const GemmProblem& p) { return std::clamp<int64_t>(kPieceElements / p.k, 1, p.n); }

// A piece of B in float32; and its columns of the product, unless it is all of B.
size_t workspace_bytes(const GemmProblem& p, const GemmSplit&) {
  if (p.weight_dtype == DType::f32) return 0;
  const int64_t rows = piece_rows(p);
  return sizeof(float) * static_cast<size_t>(rows * p.k + (rows < p.n ? p.m * rows : 0));
}

WidenKernel* widen_kernel() {
#if FDPP_X86
  switch (cpu_device().isa) {
    case CpuIsa::avx512: return widen_avx512;
    case CpuIsa::avx2: return widen_avx2;
    case CpuIsa::scalar: break;
  }
#endif
  return widen_scalar;
}

void widen_piece(const GemmParams& params, int64_t first_row, int64_t rows, float* to, const HostRuntime* host) {
  const GemmProblem& p = params.problem;
  const size_t size = dtype_size(p.weight_dtype);
  const char* from = static_cast<const char*>(params.b) + static_cast<size_t>(first_row * p.k) * size;
  const int64_t count = rows * p.k;
  WidenKernel* const widen = widen_kernel();
  parallel_for(host, static_cast<size_t>((count + kWidenElements - 1) / kWidenElements), static_cast<double>(count),
               [=, &p](size_t task) {
                 const int64_t begin = static_cast<int64_t>(task) * kWidenElements;
                 widen(from + static_cast<size_t>(begin) * size, p.weight_dtype, to + begin,
                       std::min(kWidenElements, count - begin));
               });
}

// Columns [first, first + columns) of Y = product (+ bias) (+ residual); the product may lie in Y itself.
void finish(const GemmParams& params, const float* product, int64_t product_stride, int64_t first, int64_t columns,
            const HostRuntime* host) {
  const GemmProblem& p = params.problem;
  const float* bias = static_cast<const float*>(params.bias);
  const float* residual = static_cast<const float*>(params.residual);
  parallel_for(host, static_cast<size_t>(p.m), static_cast<double>(p.m * columns), [=, &params](size_t row) {
    const int64_t m = static_cast<int64_t>(row);
    float* y = static_cast<float*>(params.y) + m * params.problem.n + first;
    const float* from = product + m * product_stride;
    if (y != from) std::memcpy(y, from, static_cast<size_t>(columns) * sizeof(float));
    if (bias != nullptr)
      for (int64_t i = 0; i < columns; ++i) y[i] += bias[first + i];
    if (residual != nullptr)
      for (int64_t i = 0; i < columns; ++i) y[i] += residual[m * params.problem.n + first + i];
  });
}

Status run(const GemmParams& params, const GemmSplit&, void* workspace, const ExecutionContext& context) {
  const GemmProblem& p = params.problem;
  const HostRuntime* host = context.host;
  if (host == nullptr || host->gemm == nullptr)
    return invalid_argument("FdppFlatGemm: cpu_runtime_gemm was planned but the runtime lends no matrix product");
  const float* a = static_cast<const float*>(params.a);
  float* y = static_cast<float*>(params.y);

  const bool wide = p.weight_dtype == DType::f32;
  const int64_t piece = wide ? p.n : piece_rows(p);
  float* const widened = static_cast<float*>(workspace);
  for (int64_t first = 0; first < p.n; first += piece) {
    const int64_t rows = std::min(piece, p.n - first);
    const float* b = static_cast<const float*>(params.b);
    if (!wide) {
      widen_piece(params, first, rows, widened, host);
      b = widened;
    }
    float* product = piece == p.n ? y : widened + piece * p.k;
    FDPP_RETURN_IF_ERROR(host->gemm(host->state, p.m, rows, p.k, a, b, product));
    if (product != y || p.has_bias || p.has_residual) finish(params, product, rows, first, rows, host);
  }
  return {};
}

}  // namespace

extern const GemmVariant kCpuRuntimeGemm;
const GemmVariant kCpuRuntimeGemm = {
    "cpu_runtime_gemm",
    Backend::cpu,
    GemmKind::large,
    "the calling runtime's matrix product, 16-bit weights widened to float32",
    supports,
    one_split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
