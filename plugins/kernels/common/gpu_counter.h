// DeviceCounter's word on a GPU; without GPU kernels every call says not_supported.
#pragma once

#include <cstdint>

#include "fdpp/status.h"

namespace fdpp {

Status allocate_gpu_counter(uint64_t** word);
Status read_gpu_counter(const uint64_t* word, uint64_t* count);
void free_gpu_counter(uint64_t* word);

}  // namespace fdpp
