// The variant cuda_flat_mma.
#include "kernels/gemm/cuda/flat_mma.h"

#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

extern const FlatLaunch kFlatHalfSame, kFlatHalfInt8, kFlatHalfFp8, kFlatHalfInt4;
extern const FlatLaunch kFlatBf16Same, kFlatBf16Int8, kFlatBf16Fp8, kFlatBf16Int4;

namespace {

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  return supports_half_gemm(problem, device, why);
}

GemmSplit split(const GemmProblem& problem, const DeviceInfo& device) {
  GemmSplit s;
  s.rows = problem.m <= 8 ? 16 : 64;
  s.pieces = device.compute_capability < 90 ? 1 : problem.m <= 8 ? 2 : 4;
  return s;
}

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) { return normalise_bytes(problem); }

FlatLaunch launch_of(const GemmProblem& p) {
  const bool half = p.dtype == DType::f16;
  switch (p.weight_format) {
    case WeightFormat::int8: return half ? kFlatHalfInt8 : kFlatBf16Int8;
    case WeightFormat::fp8: return half ? kFlatHalfFp8 : kFlatBf16Fp8;
    case WeightFormat::int4: return half ? kFlatHalfInt4 : kFlatBf16Int4;
    default: return half ? kFlatHalfSame : kFlatBf16Same;
  }
}

Status run(const GemmParams& given, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  GemmParams params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &params));
  return launch_of(params.problem)(params, split, device, stream);
}

}  // namespace

extern const GemmVariant kCudaFlatMma;
const GemmVariant kCudaFlatMma = {"cuda_flat_mma",
                                  Backend::cuda,
                                  GemmKind::flat,
                                  "any M on tensor cores, tokens padded to 8, multi-stage pipeline, split-K",
                                  supports,
                                  split,
                                  workspace_bytes,
                                  run};

}  // namespace fdpp
