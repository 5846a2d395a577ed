// The choice among variants, the same for every op: the caller's wish wins, then a standing override, then `preferred`,
// a table's own choice, where it takes the problem, then the least distance from what is wanted, then the registry's order.
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
                      const DeviceInfo& device, const std::string& wish, const Variant* preferred, Distance distance,
                      const char* choice_reason, const Variant** chosen, const char** reason) {
  const std::string forced = wish.empty() ? forced_variant(op) : wish;
  // Every call of a tuned shape comes this way: the others' refusals take far longer to write than a lookup.
  if (std::string why; forced.empty() && preferred != nullptr && preferred->supports(problem, device, &why)) {
    *chosen = preferred;
    *reason = choice_reason;
    return {};
  }
  const Variant* best = nullptr;
  int best_distance = std::numeric_limits<int>::max();
  std::string refusals;
  bool seen = wish.empty();
  for (const Variant* v : variants) {
    const bool is_forced = forced == v->name;
    seen = seen || is_forced;
    if (v->backend != device.backend) {
      // A standing override is for the backends that have the variant; a caller's wish is for this call.
      if (wish != v->name) continue;
      return not_supported(std::string(op) + ": variant " + wish + " runs on " + backend_name(v->backend) + ", not on " +
                           backend_name(device.backend));
    }
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
  if (!seen) return invalid_argument(std::string(op) + " has no variant \"" + wish + "\" in this build");
  if (best == nullptr)
    return not_supported(std::string(op) + ": no kernel for " + describe(problem) + " on " +
                         backend_name(device.backend) + " (" +
                         (refusals.empty() ? "this build has none for that backend" : refusals) + ")");
  *chosen = best;
  *reason = choice_reason;
  return {};
}

}  // namespace fdpp
