// Threads for CPU kernels that are called from Python without a runtime around them.
#pragma once

#include <cstddef>

namespace fdpp::python {

// HostRuntime::parallel_for; `state` points to an int, the number of threads to use (the caller's own is one of them).
void parallel_for(void* state, size_t count, void (*task)(void* argument, size_t index), void* argument);

}  // namespace fdpp::python
