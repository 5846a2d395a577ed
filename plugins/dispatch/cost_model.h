// What a product costs by kind, from facts of the device alone: the choice where no table was measured.
#pragma once

#include "fdpp/device.h"
#include "fdpp/gemm.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

// Estimated seconds of one call.
double gemm_cost(GemmKind kind, const GemmProblem& problem, const DeviceInfo& device);

// The cheapest; of equals the one for fewer rows.
GemmKind cheapest_kind(const GemmProblem& problem, const DeviceInfo& device);

}  // namespace fdpp
