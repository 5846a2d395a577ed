#include "dispatch/cost_model.h"

#include <algorithm>

#include "dispatch/key.h"

namespace fdpp {
namespace {

double bytes_moved(const GemmProblem& p) {
  const double rows = static_cast<double>(p.m) * static_cast<double>(p.k + p.n);
  return weight_bytes(p) + static_cast<double>(dtype_size(p.dtype)) * rows;
}

// Fitted to benchmarks/results/2026-11-22-h200-gemm.json, eleven weights over M = 1..64: choices by it cost 0.9 % more
// than the best ones on average, 25 % at worst (one pair of inflection points for all: 3.2 % and 51 %). Starts are a
// launch within a graph with filling and draining the GPU; shares are of the memory's bandwidth by clock and width.
double gpu_cost(GemmKind kind, const GemmProblem& p, const DeviceInfo& d) {
  // A driver that keeps the bandwidth for itself: what a multiprocessor of an H200 has.
  const double bandwidth = d.memory_bandwidth > 0 ? d.memory_bandwidth : d.multiprocessors * 36e9;
  const double multiprocessors = std::max(d.multiprocessors, 1);
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n), k = static_cast<double>(p.k);
  const double bytes = bytes_moved(p);
  switch (kind) {
    case GemmKind::gemv:
      // Each row of A has its own sums over lanes for every column, and its own multiplications.
      return 2.5e-6 + bytes / (0.84 * bandwidth) + m * n * 7.9e-9 / multiprocessors +
             (m - 1) * (0.33e-6 + n * k / (multiprocessors * 1.2e12));
    case GemmKind::flat: {
      // Tokens are padded to 8. The multiplications of three such tiles hide behind the loads.
      const double tiles = static_cast<double>((p.m + 7) / 8);
      const double seen = std::max(tiles - 3, 0.0);
      return 3.4e-6 + bytes / (0.84 * bandwidth) + (tiles - 1) * 0.58e-6 + (seen > 0 ? 1.7e-6 : 0) +
             seen * 8 * n * k / (multiprocessors * 2.9e12);
    }
    case GemmKind::large:
      // Bound by memory for as long as the others are in question.
      return 3.3e-6 + bytes / (0.73 * bandwidth);
  }
  return 0;
}

double cpu_cost(GemmKind kind, const GemmProblem& p, const DeviceInfo& d) {
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n), k = static_cast<double>(p.k);
  const double pass = weight_bytes(p) / 10e9;
  (void)d;
  switch (kind) {
    case GemmKind::gemv: return pass * (0.75 + 0.25 * m);
    case GemmKind::flat: return pass * (1 + static_cast<double>((p.m - 1) / 16));
    case GemmKind::large: return pass * 1.5 + m * n * k * 0;
  }
  return 0;
}

}  // namespace

double gemm_cost(GemmKind kind, const GemmProblem& problem, const DeviceInfo& device) {
  return device.backend == Backend::cpu ? cpu_cost(kind, problem, device) : gpu_cost(kind, problem, device);
}

GemmKind cheapest_kind(const GemmProblem& problem, const DeviceInfo& device) {
  GemmKind best = GemmKind::gemv;
  for (GemmKind kind : {GemmKind::flat, GemmKind::large})
    if (gemm_cost(kind, problem, device) < gemm_cost(best, problem, device)) best = kind;
  return best;
}

}  // namespace fdpp
