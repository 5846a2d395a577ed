// The variant cuda_flat_mma.
#include "kernels/gemm/cuda/flat_mma.h"

#include "kernels/common/ceil_div.h"
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

// What an H200 liked best on average; tables know better.
GemmSplit split(const GemmProblem& problem, const DeviceInfo& device) {
  const bool hopper = device.compute_capability >= 90;
  GemmSplit s;
  s.algorithm = 1;
  if (weight_dtype(problem.weight_format) != problem.dtype) {
    s.rows = 64;
  } else if (problem.m <= 16) {
    s.rows = problem.m <= 8 ? 16 : 32;
  } else {
    s.rows = 64;
    s.algorithm = 0;
  }
  s.pieces = hopper && s.rows > 16 ? 2 : 1;
  // Too few tiles for all: smaller ones, shared by more.
  if (hopper && ceil_div(problem.weight_rows(), s.rows) < device.multiprocessors / 2) {
    s.rows = 32;
    s.pieces = 4;
    s.algorithm = 0;
  }
  return s;
}

void splits(const GemmProblem& problem, const DeviceInfo& device, std::vector<GemmSplit>* out) {
  const bool quantised = weight_dtype(problem.weight_format) != problem.dtype;
  for (int rows : {16, 32, 64, 128}) {
    if (rows == 16 && (quantised || problem.m > 16)) continue;
    for (int pieces : {1, 2, 4}) {
      if (pieces > 1 && device.compute_capability < 90) continue;
      for (int algorithm : {0, 1}) out->push_back({pieces, rows, 0, algorithm});
    }
  }
  out->push_back({2, 64, 12, 0});
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
                                  "any M and format of weights on tensor cores, tokens padded to 8, ring of stages, K split in clusters",
                                  supports,
                                  split,
                                  workspace_bytes,
                                  run,
                                  splits};

}  // namespace fdpp
