#include "threads.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace fdpp::python {

void parallel_for(void* state, size_t count, void (*task)(void* argument, size_t index), void* argument) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < count;) task(argument, i);
  };
  const size_t helpers = std::min(static_cast<size_t>(*static_cast<int*>(state)), count);
  std::vector<std::thread> threads;
  try {
    for (size_t i = 1; i < helpers; ++i) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those there are do the work.
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fdpp::python
