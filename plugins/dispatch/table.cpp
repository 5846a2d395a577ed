#include "dispatch/table.h"

#include <algorithm>
#include <cmath>

namespace fdpp {
namespace {

// Shapes further apart than this, in |log2| of N plus that of K, say less about each other than the model of costs does:
// of those within a factor of 2, M1 and M2 of an H200's table lost 3.9 % on average, the model 2.8 %.
constexpr double kNear = 0.3;

// How far an entry's size of blocks is from another one, 0 for the same.
double blocks_apart(int64_t entry, int64_t wanted) {
  if (entry == wanted) return 0;
  if (entry == 0) return 1;
  return 1 + std::fabs(std::log2(static_cast<double>(entry) / static_cast<double>(wanted)));
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

bool Table::add(GemmEntry entry) {
  entry.log2_n = std::log2(static_cast<double>(entry.key.n));
  entry.log2_k = std::log2(static_cast<double>(entry.key.k));
  if (!gemm_index.emplace(entry.key, gemm.size()).second) return false;
  gemm.push_back(std::move(entry));
  return true;
}

const GemmEntry* Table::nearest(const GemmKey& key) const {
  const double log2_n = std::log2(static_cast<double>(key.n)), log2_k = std::log2(static_cast<double>(key.k));
  const GemmEntry* best = nullptr;
  double least = std::nextafter(kNear, 1.0);  // of equals the first is taken
  for (const GemmEntry& e : gemm) {
    if (!e.key.same_types(key)) continue;
    // The size of blocks matters little and the epilogue least: they decide among equals. An entry for all sizes comes
    // before those of others.
    const double apart = std::fabs(e.log2_n - log2_n) + std::fabs(e.log2_k - log2_k);
    const double blocks = blocks_apart(e.key.block_size, key.block_size);
    const double distance = apart + 1e-5 * blocks + (e.key.epilogue == key.epilogue ? 0 : 1e-6);
    if (distance < least) {
      least = distance;
      best = &e;
    }
  }
  return best;
}

bool Table::choose(const GemmProblem& problem, GemmChoice* choice) const {
  if (gemm.empty()) return false;
  const GemmKey key = key_of(problem);
  const auto exact = gemm_index.find(key);
  const GemmEntry* entry = exact != gemm_index.end() ? &gemm[exact->second] : nearest(key);
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
  const auto begin =
      std::find_if(ranges.begin(), end, [end](const AttentionRange& r) { return r.batch == (end - 1)->batch; });
  const AttentionRange& range = *(above(problem.total_length, &AttentionRange::context, begin + 1, end) - 1);
  choice->variant = range.variant;
  choice->split = range.split;
  choice->reason = tuned.c_str();
  return true;
}

}  // namespace fdpp
