// The norm of A's rows ahead of a product: a kernel of its own, whose time hides behind the product's first weights.
#pragma once

#include "kernels/common/gpu.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// What normalise() takes of the workspace, a multiple of 256; 0 where the problem has no norm.
size_t normalise_bytes(const GemmProblem& problem);

// `*out`: the same product without a norm, of normalised rows, rounded to A's type, at the front of `*workspace`, which
// is moved past them. invalid_argument: the workspace is null although the problem has a norm.
Status normalise(const GemmParams& params, void** workspace, cudaStream_t stream, GemmParams* out);

}  // namespace fdpp
