// What a GEMM kernel receives: addresses over a checked problem.
#pragma once

#include "fdpp/gemm.h"

namespace fdpp {

struct GemmParams {
  GemmProblem problem;
  const void* a = nullptr;            // dtype [M, K]
  const void* b = nullptr;            // R rows as weight_format says, R = weight_rows()
  const void* scales = nullptr;       // dtype [R], [1] or [R, blocks]; null for weights that are not quantised
  const void* zero_points = nullptr;  // two of int4's a byte, [R, (blocks + 1) / 2], or null
  const void* bias = nullptr;         // dtype [R] or null
  const void* residual = nullptr;     // dtype [M, N] or null
  const void* norm_weight = nullptr;  // dtype [K] or null
  void* y = nullptr;                  // dtype [M, N]
};

}  // namespace fdpp
