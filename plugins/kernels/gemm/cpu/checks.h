// What every CPU GEMM kernel asks of a problem.
#pragma once

#include <string>

#include "fdpp/gemm.h"

namespace fdpp {

inline bool takes_dtype(const GemmProblem& p, std::string* why) {
  if (p.dtype != DType::f32) *why = std::string("takes float32 activations, not ") + dtype_name(p.dtype);
  return p.dtype == DType::f32;
}

inline GemmSplit one_split(const GemmProblem&, const DeviceInfo&) { return {}; }

}  // namespace fdpp
