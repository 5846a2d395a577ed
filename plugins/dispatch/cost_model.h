// What a product costs by kind, from facts of the device alone: the choice where no table was measured.
#pragma once

#include "fdpp/device.h"
#include "fdpp/gemm.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

// The kind that takes the least time by estimate; of equals the one for fewer rows.
GemmKind cheapest_kind(const GemmProblem& problem, const DeviceInfo& device);

}  // namespace fdpp
