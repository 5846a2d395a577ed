#include <new>

#include "fdpp/device.h"
#include "kernels/common/gpu_counter.h"

namespace fdpp {

DeviceCounter::~DeviceCounter() {
  if (backend_ == Backend::cpu)
    delete word_;
  else
    free_gpu_counter(word_);
}

Status DeviceCounter::create(Backend backend) {
  backend_ = backend;
  if (backend != Backend::cpu) return allocate_gpu_counter(&word_);
  word_ = new (std::nothrow) uint64_t(0);
  return word_ != nullptr ? Status() : Status(StatusCode::out_of_memory, "a counter of 8 bytes was refused");
}

Status DeviceCounter::read(uint64_t* count) const {
  *count = 0;
  if (word_ == nullptr) return {};
  if (backend_ != Backend::cpu) return read_gpu_counter(word_, count);
  *count = __atomic_load_n(word_, __ATOMIC_RELAXED);
  return {};
}

}  // namespace fdpp
