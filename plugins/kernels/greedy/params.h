// What kernels of FdppGreedyStep get.
#pragma once

#include <cstdint>

#include "fdpp/greedy_step.h"

namespace fdpp {

struct GreedyParams {
  GreedyStep step;
  const void* logits = nullptr;
  const int64_t* positions = nullptr;
  int64_t* next_tokens = nullptr;
  int64_t* next_positions = nullptr;
  int64_t* next_mask = nullptr;
  int64_t* host_tokens = nullptr;
};

// Of a row with a NaN: what the host is told, and a token of any vocabulary.
inline constexpr int64_t kNoToken = -1;
inline constexpr int64_t kAnyToken = 0;

Status run_greedy_step_cuda(const GreedyParams& params, void* stream);

}  // namespace fdpp
