// How CPU kernels use the calling runtime's threads.
#pragma once

#include <cstddef>

#include "fdpp/device.h"

namespace fdpp {
namespace {

// Calls task(i) for each i in [0, count) and returns when all are done. `cost` is the work of all of them, in bytes or
// multiply-adds: waking other threads takes microseconds, so little work stays on the calling thread.
template <typename Task>
inline void parallel_for(const HostRuntime* host, size_t count, double cost, const Task& task) {
  constexpr double kWorthThreads = 32 * 1024;
  if (count <= 1 || cost < kWorthThreads || host == nullptr || host->parallel_for == nullptr) {
    for (size_t i = 0; i < count; ++i) task(i);
    return;
  }
  host->parallel_for(
      host->state, count, [](void* argument, size_t i) { (*static_cast<const Task*>(argument))(i); },
      const_cast<Task*>(&task));
}

}  // namespace
}  // namespace fdpp
