// What a GEMM kernel receives: addresses over a checked problem.
#pragma once

#include "fdpp/gemm.h"

namespace fdpp {

struct GemmParams {
  GemmProblem problem;
  const void* a = nullptr;            // dtype [M, K], rows a_row_stride apart
  const void* b = nullptr;            // R rows as weight_format says, R = weight_rows()
  const void* scales = nullptr;       // dtype [R], [1] or [R, blocks]; null for weights that are not quantised
  const void* zero_points = nullptr;  // two of int4's a byte, [R, (blocks + 1) / 2], or null
  const void* bias = nullptr;         // dtype [R] or null
  const void* residual = nullptr;     // dtype [M, N] or null
  const void* norm_weight = nullptr;  // dtype [K] or null
  const void* norm_bias = nullptr;    // dtype [K] or null
  const void* next_weight = nullptr;  // what a later product reads, or null: a hint
  int64_t next_weight_bytes = 0;
  void* y = nullptr;                  // dtype [M, N]
};

// From one row to the next of what is multiplied: A, or its normalised rows, which are neighbours.
inline int64_t product_row_stride(const GemmProblem& p) { return p.has_norm() ? p.k : p.a_row_stride; }

// From one row of B to the next.
inline int64_t weight_row_bytes(const GemmProblem& p) {
  if (p.blocks() > 0) return p.blocks() * p.block_size / 2;
  return p.k * static_cast<int64_t>(dtype_size(weight_dtype(p.weight_format)));
}

// The binary logarithm of int4's block size; 0 in other formats.
inline int block_log(const GemmProblem& p) {
  int log = 0;
  while (int64_t{1} << log < p.block_size) ++log;
  return log;
}

}  // namespace fdpp
