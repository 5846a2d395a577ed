// What follows a library's product where the library does not do it itself: activation, and with it bias and residual, over
// the product's sums.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// What sums are kept in: float32, so that results are rounded once as everywhere else; where they outgrow the L2, as a prompt's
// do, the result's own type, which a graph with the activation beside the product keeps them in, too.
DType finish_type(const GemmProblem& problem);
// Rows of A that are multiplied at a time, so that their sums take little memory.
int64_t finish_rows(const GemmProblem& problem);
// What their sums [finish_rows, R] take of the workspace, a multiple of 256.
size_t finish_bytes(const GemmProblem& problem);

// Rows `first` to `first` + `rows` of Y, of their sums, finish_type() [rows, R], without weights' scales: params has none left.
// N is a multiple of 2.
Status finish(const GemmParams& params, const void* sums, int64_t first, int64_t rows, cudaStream_t stream);

}  // namespace fdpp
