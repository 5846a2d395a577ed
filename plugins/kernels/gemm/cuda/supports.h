// What CUDA GEMM variants ask of a problem and a device.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "kernels/gemm/params.h"

namespace fdpp {

inline bool supports_half_gemm(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (problem.dtype != DType::f16 && problem.dtype != DType::bf16) {
    *why = std::string("A is ") + dtype_name(problem.dtype) + ", expected float16 or bfloat16";
    return false;
  }
  if (problem.weight_format == WeightFormat::f32 ||
      (problem.blocks() == 0 && dtype_size(weight_dtype(problem.weight_format)) == 2 &&
       weight_dtype(problem.weight_format) != problem.dtype)) {
    *why = std::string("weights are ") + weight_format_name(problem.weight_format) + ", expected A's type " +
           dtype_name(problem.dtype) + ", int8, fp8 or int4";
    return false;
  }
  if (device.compute_capability < 80) {
    *why = "compute capability " + std::to_string(device.compute_capability / 10) + "." +
           std::to_string(device.compute_capability % 10) + " is below 8.0";
    return false;
  }
  // Kernels count columns in 32 bits, with room for a tile past the end.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 2048;
  if (problem.weight_rows() > kMost || problem.k > kMost || product_row_stride(problem) > kMost) {
    *why = "K, the distance of A's rows or the rows of B are above " + std::to_string(kMost);
    return false;
  }
  return true;
}

inline bool has_weights_of_a(const GemmProblem& problem, std::string* why) {
  if (weight_dtype(problem.weight_format) == problem.dtype) return true;
  *why = std::string("weights are ") + weight_format_name(problem.weight_format) + ", expected A's type " +
         dtype_name(problem.dtype);
  return false;
}

// int4 for kernels that take 32 numbers of a row and its scales or zero points in words of four bytes.
inline bool has_whole_vectors(const GemmProblem& problem, std::string* why) {
  if (problem.block_size < 32 || problem.k % 32 != 0) {
    *why = "int4 weights in blocks of 16, or K that is not a multiple of 32";
  } else if (problem.blocks() % (problem.has_zero_points ? 8 : 2) != 0) {
    *why = problem.has_zero_points ? "zero points whose rows are not whole words" : "an odd number of blocks in a row";
  } else {
    return true;
  }
  return false;
}

}  // namespace fdpp
