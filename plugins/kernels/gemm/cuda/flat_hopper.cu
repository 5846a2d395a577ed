// The variant cuda_flat_hopper: the flat GEMM with products of warpgroups, which leave room for more tokens.
#include "kernels/gemm/cuda/flat_launch.cuh"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

constexpr int kLeastM = 9;  // fewer are as fast without

bool supports(const GemmProblem& p, const DeviceInfo& d, std::string* why) {
  if (!supports_half_gemm(p, d, why) || !has_weights_of_a(p, why)) return false;
  if (d.compute_capability != 90) {
    *why = "takes compute capability 9.0 alone";
  } else if (p.m < kLeastM) {
    *why = "M is below " + std::to_string(kLeastM);
  } else if (p.k % kPanelColumns != 0) {
    *why = "takes K that is a multiple of 64";
  } else if (product_row_stride(p) % 8 != 0) {
    *why = "takes rows of A that lie a multiple of 8 elements apart";
  } else {
    return true;
  }
  return false;
}

// What an H200 liked.
bool suits(const GemmProblem& p, const DeviceInfo& d) {
  return p.m > 16 || p.weight_rows() >= 100 * int64_t{d.multiprocessors};
}

// Two blocks of a multiprocessor with shallow rings, or one with a deep one.
GemmSplit twice(int pieces) { return {pieces, 64, 0, 1}; }
GemmSplit deep(int pieces) { return {pieces, 64, 12, 0}; }

void splits(const GemmProblem&, const DeviceInfo&, std::vector<GemmSplit>* out) {
  for (int pieces : {1, 2}) out->push_back(twice(pieces));
  for (int pieces : {1, 2, 4}) out->push_back(deep(pieces));
}

GemmSplit split(const GemmProblem& p, const DeviceInfo& d) {
  const int64_t tiles = ceil_div(p.weight_rows(), 64);
  // Few tiles: of short rows they end before clusters have met, of long ones more blocks have to share them.
  if (4 * tiles <= d.multiprocessors) return deep(p.k < 2048 ? 1 : 4);
  return deep(2);
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

template <typename T, WeightFormat kFormat>
Status launch_wgmma(const GemmParams& params, const GemmSplit& split, const DeviceInfo& d, cudaStream_t stream) {
  const int64_t m = params.problem.m, tiles = ceil_div(ceil_div(m, ceil_div(m, 64)), 8);
  if (tiles <= 2) return launch_kernel<T, kFormat, 2, 64, FlatFill::tensor, true, true>(params, split, d, stream);
  if (tiles <= 4) return launch_kernel<T, kFormat, 4, 64, FlatFill::tensor, true, true>(params, split, d, stream);
  return launch_kernel<T, kFormat, 8, 64, FlatFill::tensor, true, true>(params, split, d, stream);
}

Status run(const GemmParams& given, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  GemmParams params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &params));
  const bool half = params.problem.dtype == DType::f16;
  // Addresses that the copy engine does not take: the planner knows nothing of them.
  if (fill_of(params, device) != FlatFill::tensor)
    return (half ? kFlatHalfSame : kFlatBf16Same)(params, split, device, stream);
  return half ? launch_wgmma<__half, WeightFormat::f16>(params, split, device, stream)
              : launch_wgmma<__nv_bfloat16, WeightFormat::bf16>(params, split, device, stream);
}

}  // namespace

extern const GemmVariant kCudaFlatHopper;
const GemmVariant kCudaFlatHopper = {"cuda_flat_hopper",
                                     Backend::cuda,
                                     GemmKind::flat,
                                     "M from 9 on with products of warpgroups on sm_90, otherwise as cuda_flat_mma",
                                     supports,
                                     split,
                                     workspace_bytes,
                                     run,
                                     splits,
                                     suits};

}  // namespace fdpp
