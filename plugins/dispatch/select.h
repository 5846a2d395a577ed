// The choice among variants, the same for every op: an override wins, then the least distance from what the table wants,
// then the order of the registry.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "dispatch/force.h"
#include "fdpp/device.h"
#include "fdpp/status.h"

namespace fdpp {

template <typename Variant, typename Problem, typename Distance>
Status select_variant(const char* op, const std::vector<const Variant*>& variants, const Problem& problem,
                      const DeviceInfo& device, Distance distance, const char* table_reason, const Variant** chosen,
                      const char** reason) {
  const std::string forced = forced_variant(op);
  const Variant* best = nullptr;
  int best_distance = std::numeric_limits<int>::max();
  std::string refusals;
  for (const Variant* v : variants) {
    if (v->backend != device.backend) continue;
    const bool is_forced = forced == v->name;
    std::string why;
    if (!v->supports(problem, device, &why)) {
      if (is_forced)
        return not_supported(std::string(op) + ": variant " + v->name + " is forced but does not take " +
                             describe(problem) + ": " + why);
      refusals += std::string(refusals.empty() ? "" : "; ") + v->name + ": " + why;
      continue;
    }
    if (is_forced) {
      *chosen = v;
      *reason = "forced";
      return {};
    }
    if (distance(*v) < best_distance) {
      best_distance = distance(*v);
      best = v;
    }
  }
  if (best == nullptr)
    return not_supported(std::string(op) + ": no kernel for " + describe(problem) + " on " +
                         backend_name(device.backend) + " (" +
                         (refusals.empty() ? "this build has none for that backend" : refusals) + ")");
  *chosen = best;
  *reason = table_reason;
  return {};
}

}  // namespace fdpp
