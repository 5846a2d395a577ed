// M = 1 with int4 weights.
#pragma once

#include <string>

#include "fdpp/gemm.h"
#include "kernels/gemm/params.h"

namespace fdpp {

bool supports_gemv_int4(const GemmProblem& problem, std::string* why);
GemmSplit gemv_int4_split(const GemmProblem& problem, const DeviceInfo& device);
// `params` with rows of A side by side; an error names a tensor that is not aligned.
Status run_gemv_int4(const GemmParams& params, const GemmSplit& split, void* stream);

}  // namespace fdpp
