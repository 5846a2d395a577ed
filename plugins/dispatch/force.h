// Overrides of the heuristic: FDPP_FORCE and force_variant().
#pragma once

#include <string>

namespace fdpp {

// The variant that `op` was told to run on any backend that has it, or "".
std::string forced_variant(const char* op);

}  // namespace fdpp
