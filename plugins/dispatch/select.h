// The choice among variants, the same for every op: the caller's wish wins, then a standing override, then `preferred`,
// a table's own choice, where it takes the problem, then the least distance from what is wanted, then the
// registry's order.
#pragma once

#include <string>
#include <vector>

#include "dispatch/force.h"
#include "fdpp/device.h"
#include "fdpp/status.h"

namespace fdpp {

constexpr int kMostDistance = 5;

// The variant that must run, or null. A standing override is for the backends that have the variant, a caller's wish is
// for this call.
template <typename Variant, typename Problem>
Status find_forced(const char* op, const std::vector<const Variant*>& variants, const Problem& problem,
                   const DeviceInfo& device, const std::string& wish, const Variant** forced) {
  *forced = nullptr;
  const std::string name = wish.empty() ? forced_variant(op) : wish;
  if (name.empty()) return {};
  for (const Variant* v : variants) {
    if (name != v->name) continue;
    if (v->backend != device.backend) {
      if (wish.empty()) return {};
      return not_supported(std::string(op) + ": variant " + wish + " runs on " + backend_name(v->backend) +
                           ", not on " + backend_name(device.backend));
    }
    std::string why;
    if (!v->supports(problem, device, &why))
      return not_supported(std::string(op) + ": variant " + v->name + " is forced but does not take " +
                           describe(problem) + ": " + why);
    *forced = v;
    return {};
  }
  return invalid_argument(std::string(op) + " has no variant \"" + name + "\" in this build");
}

template <typename Variant, typename Problem>
Status no_kernel(const char* op, const std::vector<const Variant*>& variants, const Problem& problem,
                 const DeviceInfo& device) {
  std::string refusals;
  for (const Variant* v : variants) {
    std::string why;
    if (v->backend != device.backend || v->supports(problem, device, &why)) continue;
    refusals += std::string(refusals.empty() ? "" : "; ") + v->name + ": " + why;
  }
  return not_supported(std::string(op) + ": no kernel for " + describe(problem) + " on " +
                       backend_name(device.backend) + " (" +
                       (refusals.empty() ? "this build has none for that backend" : refusals) + ")");
}

template <typename Variant, typename Problem, typename Distance>
Status select_variant(const char* op, const std::vector<const Variant*>& variants, const Problem& problem,
                      const DeviceInfo& device, const std::string& wish, const Variant* preferred, Distance distance,
                      const char* choice_reason, const Variant** chosen, const char** reason) {
  *reason = "forced";
  FDPP_RETURN_IF_ERROR(find_forced(op, variants, problem, device, wish, chosen));
  if (*chosen != nullptr) return {};
  *reason = choice_reason;
  // Nearest first, so that the common call asks one variant alone: a refusal takes far longer to write than a lookup.
  std::string why;
  const auto takes = [&](const Variant* v) {
    return v->backend == device.backend && v->supports(problem, device, &why);
  };
  if (preferred != nullptr && takes(preferred)) *chosen = preferred;
  for (int wanted = 0; *chosen == nullptr && wanted <= kMostDistance; ++wanted)
    for (const Variant* v : variants)
      if (*chosen == nullptr && distance(*v) == wanted && takes(v)) *chosen = v;
  return *chosen != nullptr ? Status() : no_kernel(op, variants, problem, device);
}

}  // namespace fdpp
