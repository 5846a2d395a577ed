// What every CPU GEMM kernel asks of a problem.
#pragma once

#include <string>

#include "fdpp/gemm.h"

namespace fdpp {

inline bool takes_dtypes(const GemmProblem& p, std::string* why) {
  const bool known = p.dtype == DType::f32 &&
                     (p.weight_dtype == DType::f32 || p.weight_dtype == DType::f16 || p.weight_dtype == DType::bf16);
  if (!known)
    *why = std::string("takes float32 with float32, float16 or bfloat16 weights, not ") + dtype_name(p.dtype) +
           " with " + dtype_name(p.weight_dtype);
  return known;
}

inline GemmSplit one_split(const GemmProblem&, const DeviceInfo&) { return {}; }

}  // namespace fdpp
