// Heuristic dataflow: where one implementation gives way to the next, per device.
#pragma once

#include <cstdint>

#include "fdpp/device.h"

namespace fdpp {

// gemv for M < m1, flat for m1 <= M < m2, large from m2 on (FlashDecoding++, section 5).
struct GemmInflection {
  int64_t m1;
  int64_t m2;
  const char* source;  // where the figures come from; static text
};

GemmInflection gemm_inflection(const DeviceInfo& device);

}  // namespace fdpp
