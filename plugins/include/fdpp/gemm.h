// FdppFlatGemm: Y = A · Bᵀ (+ bias) (+ residual) for the few rows of A that decoding has; any M works.
//
//   check_gemm()  ->  plan_gemm()  ->  run_gemm(), with the roles of attention.h
//
// Layouts (row-major): A [..., K], flattened to M rows; B [N, K] with K contiguous; bias [N]; residual and Y [..., N]. Y overlaps no input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

struct GemmAttributes {
  int64_t n = 0;
  int64_t k = 0;
  std::string weight_format;            // "f32", "f16" or "bf16": B's element type
  std::string activation = "none";
};

struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::undefined;         // of A, bias, residual and Y
  DType weight_dtype = DType::undefined;  // of B
  bool has_bias = false;
  bool has_residual = false;
};
FDPP_API std::string describe(const GemmProblem& problem);

FDPP_API Status check_gemm(const GemmAttributes& attributes, const TensorView* inputs, GemmProblem* problem);

struct GemmVariant;

// How a product is shared out. 0 where a variant has one number only; it may take less than asked for.
struct GemmSplit {
  int pieces = 1;  // of K, worked on side by side: 1 to 64
  int rows = 0;    // of B that a block works on at a time: 0 to 1024
  int stages = 0;  // slices of K under way in a block: 0 to 64
  int algorithm = 0;  // of a library's, in the order in which it recommends them: 0 to 15

  bool operator==(const GemmSplit& other) const {
    return pieces == other.pieces && rows == other.rows && stages == other.stages && algorithm == other.algorithm;
  }
};

struct GemmPlan {
  const GemmVariant* variant = nullptr;
  GemmSplit split;
  size_t workspace_bytes = 0;   // in the device's memory, 256-byte aligned, contents arbitrary
  const char* reason = "";      // why this variant; static text
};

// `variant` names the variant to take, an error where it does not take the problem; empty: force_variant(), then the
// tables and the model of costs decide. `split`, if not null, stands in for theirs and for the variant's own choice.
FDPP_API Status plan_gemm(const GemmProblem& problem, const DeviceInfo& device, GemmPlan* plan,
                          const std::string& variant = "", const GemmSplit* split = nullptr);
FDPP_API const char* variant_name(const GemmPlan& plan);
// The splits of `variant` that are worth timing for this problem, its own choice first. A library is asked on the
// current GPU.
FDPP_API Status gemm_splits(const GemmProblem& problem, const DeviceInfo& device, const std::string& variant,
                            std::vector<GemmSplit>* splits);
FDPP_API Status run_gemm(const GemmProblem& problem, const GemmPlan& plan, const TensorView* inputs,
                         const TensorView* outputs, void* workspace, const ExecutionContext& context);

}  // namespace fdpp
