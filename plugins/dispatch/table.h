// One dispatch table: what fdpp-tune measured on one device. Format: docs/dispatch.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dispatch/choice.h"
#include "dispatch/key.h"
#include "fdpp/device.h"
#include "fdpp/status.h"
#include "kernels/attention/variant.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

// The facts of a device that decide whether figures from elsewhere hold on it; those of another backend are 0.
struct DeviceKey {
  Backend backend = Backend::cpu;
  std::string name;
  int compute_capability = 0;
  int multiprocessors = 0;
  CpuIsa isa = CpuIsa::scalar;
  int threads = 0;

  bool matches(const DeviceInfo& d) const;
  std::string describe() const;
};
DeviceKey device_key(const DeviceInfo& device);

// Holds from M = `from` to where the next one starts.
struct GemmRange {
  int64_t from = 1;
  const GemmVariant* variant = nullptr;  // null: this build has no kernels for the table's backend
  GemmSplit split;
};

struct GemmEntry {
  GemmKey key;
  int64_t m1 = 0;  // gemv for M < m1, flat for m1 <= M < m2, large from m2 on (FlashDecoding++, section 5)
  int64_t m2 = 0;
  std::vector<GemmRange> ranges;  // by `from`, the first from 1
  double log2_n = 0;              // of the key, for distances
  double log2_k = 0;
};

// Holds from this batch and context on; a batch's ranges start at context 1, the first batch is 1.
struct AttentionRange {
  int64_t batch = 1;
  int64_t context = 1;
  const AttentionVariant* variant = nullptr;
  AttentionSplit split;
};

struct AttentionEntry {
  AttentionKey key;
  std::vector<AttentionRange> ranges;  // by batch, then context
};

struct Table {
  std::string path;
  DeviceKey device;
  std::vector<GemmEntry> gemm;
  std::unordered_map<GemmKey, size_t, KeyHash> gemm_index;  // into gemm
  std::unordered_map<AttentionKey, AttentionEntry, KeyHash> attention;
  // Reasons of plans, which are static text: a table that was read is never freed.
  std::string tuned, tuned_near, foreign;
  mutable std::atomic<bool> said_foreign{false};

  // False: there is an entry with that key.
  bool add(GemmEntry entry);

  // Fills `choice` from the entry of that shape or, without one, of the nearest; false: there is none near.
  bool choose(const GemmProblem& problem, GemmChoice* choice) const;
  bool choose(const AttentionProblem& problem, AttentionChoice* choice) const;

 private:
  const GemmEntry* nearest(const GemmKey& key) const;
};

// `text` is the file's content. not_supported: a later version of the library or of the format wrote it.
Status parse_table(const std::string& path, std::string_view text, Table* table);
Status read_table(const std::string& path, Table* table);

}  // namespace fdpp
