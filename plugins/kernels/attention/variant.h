// One attention kernel family as the registry sees it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "fdpp/attention.h"
#include "kernels/attention/params.h"

namespace fdpp {

struct AttentionVariant {
  const char* name;
  Backend backend;
  const char* summary;
  // Whether the variant computes `problem` on `device`; where not, `why` (never null) says what stands against it.
  bool (*supports)(const AttentionProblem& problem, const DeviceInfo& device, std::string* why);
  AttentionSplit (*split)(const AttentionProblem& problem, const DeviceInfo& device);
  // An upper bound that holds for every content of seqlens_k.
  size_t (*workspace_bytes)(const AttentionProblem& problem, const AttentionSplit& split);
  Status (*run)(const AttentionParams& params, const AttentionSplit& split, void* workspace,
                const ExecutionContext& context);
  // Adds the splits that are worth timing for a problem that the variant takes. Null: there is its own choice alone.
  void (*splits)(const AttentionProblem& problem, const DeviceInfo& device,
                 std::vector<AttentionSplit>* splits) = nullptr;
};

}  // namespace fdpp
