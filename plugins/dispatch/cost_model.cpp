#include "dispatch/cost_model.h"

#include <algorithm>
#include <limits>

#include "dispatch/key.h"

namespace fdpp {
namespace {

// All costs are seconds.

double bytes_moved(const GemmProblem& p) {
  const double rows = static_cast<double>(p.m) * static_cast<double>(p.k + p.weight_rows());
  return weight_bytes(p) + static_cast<double>(dtype_size(p.dtype)) * rows;
}

// Fitted to what fdpp-tune measured on an H200. Starts are a
// launch within a graph with filling and draining the GPU; shares are of the memory's bandwidth by clock and width.
double gpu_cost(GemmKind kind, const GemmProblem& p, const DeviceInfo& d) {
  // A driver that keeps the bandwidth for itself: what a multiprocessor of an H200 has.
  const double bandwidth = d.memory_bandwidth > 0 ? d.memory_bandwidth : d.multiprocessors * 36e9;
  const double multiprocessors = std::max(d.multiprocessors, 1);
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.weight_rows()), k = static_cast<double>(p.k);
  const double read = bytes_moved(p) / bandwidth;
  switch (kind) {
    case GemmKind::gemv:
      // Its kernel takes one row. Wanted for more, the nearest kind would come instead, cheap or not.
      if (p.weight_format == WeightFormat::int4)
        return p.m > 1 ? std::numeric_limits<double>::infinity() : 2.2e-6 + 1.14 * read;
      // Each row of A has its own multiplications and sums over lanes.
      return 1.6e-6 + 1.06 * read + (m - 1) * (0.25e-6 + n * k / (multiprocessors * 3.8e11));
    case GemmKind::flat: {
      // Tokens are padded to 8, 16 or 32 of them at a time. Small weights show the way through the ring.
      const double passes = static_cast<double>((p.m + 31) / 32);
      if (p.weight_format == WeightFormat::int4) {
        const double share = n * k / multiprocessors;
        const double pass = p.m <= 8    ? 2.9e-6 + share / 3.85e10
                            : p.m <= 16 ? 5.5e-6 + share / 3.0e10
                                        : 15.4e-6 + share / 1.43e10;
        return passes * pass;
      }
      // Products of warpgroups: the library's best algorithm is no faster, the one that it recommends first often slower.
      const bool warpgroups = d.compute_capability == 90 && weight_dtype(p.weight_format) == p.dtype;
      const double pass = p.m <= 8    ? std::max(1.6e-6 + 1.075 * read, 2.8e-6 + 0.8 * read)
                          : p.m <= 16 ? 2.4e-6 + 1.09 * read
                                      : (warpgroups ? 3.3e-6 : 4.5e-6) + 1.05 * read;
      return passes * pass;
    }
    case GemmKind::large:
      // Bound by memory for as long as the others are in question. Quantised weights are written and read once more.
      return 4.0e-6 + 1.09 * read +
             (weight_dtype(p.weight_format) == p.dtype ? 0 : 2.75 * n * k * dtype_size(p.dtype) / bandwidth);
  }
  return 0;
}

// What fdpp-tune measured on two cores of a Xeon with AVX-512, weights of 576 x 576 to 2048 x 2048 in float32 and
// float16: the kernels read 8 GB/s a core; a pass over the weights serves up to 16 rows, at 15e9 multiplications a
// second and core; the runtime's product moves its operand twice as float32 (packed, before that widened) but
// multiplies at 34e9.
double cpu_cost(GemmKind kind, const GemmProblem& p, const DeviceInfo& d) {
  const double threads = std::max(d.threads, 1);
  const double weights = static_cast<double>(p.weight_rows()) * static_cast<double>(p.k);
  const double read = weight_bytes(p) / (8e9 * threads);
  switch (kind) {
    case GemmKind::gemv:
      // A hair faster for one row; without blocks in registers the multiplications of further ones soon tell.
      return std::max(read * (0.94 + 0.05 * static_cast<double>(p.m)),
                      static_cast<double>(p.m - 1) * weights / (7e9 * threads));
    case GemmKind::flat: {
      // Rows beyond 16 are a pass of their own, counted as a full one: what it saves with fewer is less than noise.
      const int64_t rows = p.m <= 16 ? p.m : (p.m + 15) / 16 * 16;
      return std::max(read, static_cast<double>(rows) * weights / (15e9 * threads));
    }
    case GemmKind::large:
      return 2 * sizeof(float) * weights / (8e9 * threads) + static_cast<double>(p.m) * weights / (34e9 * threads);
  }
  return 0;
}

}  // namespace

GemmKind cheapest_kind(const GemmProblem& problem, const DeviceInfo& device) {
  const auto cost = device.backend == Backend::cpu ? cpu_cost : gpu_cost;
  const auto kinds = {GemmKind::gemv, GemmKind::flat, GemmKind::large};
  return *std::min_element(kinds.begin(), kinds.end(), [&](GemmKind a, GemmKind b) {
    return cost(a, problem, device) < cost(b, problem, device);
  });
}

}  // namespace fdpp
