// What every CUDA GEMM variant asks of a problem and a device.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "fdpp/gemm.h"

namespace fdpp {

inline bool supports_half_gemm(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    *why = std::string("A is ") + dtype_name(problem.dtype) + ", expected float16 or bfloat16";
    return false;
  }
  if (weight_dtype(problem.weight_format) != problem.dtype) {
    *why = std::string("weights are ") + weight_format_name(problem.weight_format) + ", expected A's type " +
           dtype_name(problem.dtype);
    return false;
  }
  if (problem.activation != Activation::none || problem.has_norm) {
    *why = problem.has_norm ? "it does not normalise A"
                            : std::string("it does not apply ") + activation_name(problem.activation);
    return false;
  }
  if (device.compute_capability < 80) {
    *why = "compute capability " + std::to_string(device.compute_capability / 10) + "." +
           std::to_string(device.compute_capability % 10) + " is below 8.0";
    return false;
  }
  // Kernels count columns in 32 bits, with room for a tile past the end.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1024;
  if (problem.n > kMost || problem.k > kMost) {
    *why = "N or K is above " + std::to_string(kMost);
    return false;
  }
  return true;
}

}  // namespace fdpp
