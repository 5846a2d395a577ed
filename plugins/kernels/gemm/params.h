// What a GEMM kernel receives: addresses over a checked problem.
#pragma once

#include "fdpp/gemm.h"

namespace fdpp {

struct GemmParams {
  GemmProblem problem;
  const void* a = nullptr;         // dtype [M, K]
  const void* b = nullptr;         // weight_dtype [N, K]
  const void* bias = nullptr;      // dtype [N] or null
  const void* residual = nullptr;  // dtype [M, N] or null
  void* y = nullptr;               // dtype [M, N]
};

}  // namespace fdpp
