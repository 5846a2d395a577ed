// What a GPU kernel can report through DeviceFault.
#pragma once

#include <cstdint>

namespace fdpp {

enum FaultCode : int32_t {
  kNoFault = 0,
  kBadSeqlens = 1,
  kBadPosition = 2,
};

inline const char* fault_meaning(int32_t code) {
  if (code == kBadSeqlens)
    return "found a value of seqlens_k outside the cache (below the number of new tokens, or at or above "
           "total_sequence_length); that row of its output is NaN";
  if (code == kBadPosition)
    return "found a value of position_ids that is no row of cos_cache; that token's output is NaN";
  return "reported an unknown fault";
}

}  // namespace fdpp
