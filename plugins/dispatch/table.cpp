#include "dispatch/table.h"

#include <algorithm>
#include <cmath>

namespace fdpp {
namespace {

// Shapes further apart than this (a factor of 2 in N times K, say) say nothing about each other.
constexpr double kNear = 1;

double distance(const GemmKey& a, const GemmKey& b) {
  const auto apart = [](int64_t x, int64_t y) {
    return std::fabs(std::log2(static_cast<double>(x) / static_cast<double>(y)));
  };
  // The epilogue matters least: it decides among equals.
  return apart(a.n, b.n) + apart(a.k, b.k) + (a.epilogue == b.epilogue ? 0 : 1e-6);
}

}  // namespace

bool DeviceKey::matches(const DeviceInfo& d) const {
  if (backend != d.backend || name != d.name) return false;
  return backend == Backend::cpu ? isa == d.isa && threads == d.threads
                                 : compute_capability == d.compute_capability && multiprocessors == d.multiprocessors;
}

DeviceKey device_key(const DeviceInfo& d) {
  if (d.backend == Backend::cpu) return {d.backend, d.name, 0, 0, d.isa, d.threads};
  return {d.backend, d.name, d.compute_capability, d.multiprocessors, CpuIsa::scalar, 0};
}

std::string DeviceKey::describe() const {
  if (backend == Backend::cpu) return name + " (" + cpu_isa_name(isa) + ", " + std::to_string(threads) + " threads)";
  return name + " (compute capability " + std::to_string(compute_capability / 10) + "." +
         std::to_string(compute_capability % 10) + ", " + std::to_string(multiprocessors) + " multiprocessors)";
}

bool Table::choose(const GemmProblem& problem, GemmChoice* choice) const {
  const GemmKey key = key_of(problem);
  const GemmEntry* entry = nullptr;
  if (const auto exact = gemm.find(key); exact != gemm.end()) {
    entry = &exact->second;
  } else {
    double least = kNear;
    for (const auto& [other, candidate] : gemm) {
      if (!other.same_types(key)) continue;
      if (const double d = distance(key, other); d < least) {
        least = d;
        entry = &candidate;
      }
    }
  }
  if (entry == nullptr) return false;
  choice->kind = problem.m < entry->m1   ? GemmKind::gemv
                 : problem.m < entry->m2 ? GemmKind::flat
                                         : GemmKind::large;
  // A split belongs to its shape: of another one only M1 and M2 carry over.
  if (entry->key.n != key.n || entry->key.k != key.k) {
    choice->reason = tuned_near.c_str();
    return true;
  }
  const auto after = std::upper_bound(entry->ranges.begin() + 1, entry->ranges.end(), problem.m,
                                      [](int64_t m, const GemmRange& range) { return m < range.from; });
  const GemmRange& range = *(after - 1);
  choice->variant = range.variant;
  choice->split = range.split;
  choice->reason = tuned.c_str();
  return true;
}

bool Table::choose(const AttentionProblem& problem, AttentionChoice* choice) const {
  if (attention.empty() || problem.query_length != 1) return false;
  const auto entry = attention.find(key_of(problem));
  if (entry == attention.end()) return false;
  const std::vector<AttentionRange>& ranges = entry->second.ranges;
  const auto above = [](int64_t value, int64_t AttentionRange::*field, auto first, auto last) {
    return std::upper_bound(first, last, value,
                            [field](int64_t v, const AttentionRange& range) { return v < range.*field; });
  };
  const auto end = above(problem.batch, &AttentionRange::batch, ranges.begin() + 1, ranges.end());
  const auto begin = std::find_if(ranges.begin(), end, [end](const AttentionRange& r) { return r.batch == (end - 1)->batch; });
  const AttentionRange& range = *(above(problem.total_length, &AttentionRange::context, begin + 1, end) - 1);
  choice->variant = range.variant;
  choice->split = range.split;
  choice->reason = tuned.c_str();
  return true;
}

}  // namespace fdpp
