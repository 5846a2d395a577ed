// int8, fp8 and int4 weights as A's type in the workspace, for products with so many rows that a pass over them is little.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// What dequantise() takes of the workspace, a multiple of 256; 0 where weights have A's type.
size_t dequantise_bytes(const GemmProblem& problem);

// `*out`: the same product with weights of A's type, [R, K] at the front of `*workspace`, which is moved past them. K is a
// multiple of 8. invalid_argument: the workspace is null although the weights are quantised.
Status dequantise(const GemmParams& params, void** workspace, cudaStream_t stream, GemmParams* out);

}  // namespace fdpp
