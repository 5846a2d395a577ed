// What follows a library's product where the library does not do it itself: activation, and with it bias and residual, over
// sums in float32, so that results are rounded once as everywhere else.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// Rows of A that are multiplied at a time, so that their sums take little memory.
int64_t finish_rows(const GemmProblem& problem);
// What their sums [finish_rows, R] take of the workspace, a multiple of 256.
size_t finish_bytes(const GemmProblem& problem);

// Rows `first` to `first` + `rows` of Y, of their sums [rows, R] without weights' scales: params has none left.
Status finish(const GemmParams& params, const float* sums, int64_t first, int64_t rows, cudaStream_t stream);

}  // namespace fdpp
