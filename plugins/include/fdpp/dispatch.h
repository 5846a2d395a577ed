// What can run, what must run, and what ran.
#pragma once

#include <string>
#include <vector>

#include "fdpp/attention.h"
#include "fdpp/device.h"
#include "fdpp/gemm.h"
#include "fdpp/status.h"

namespace fdpp {

struct VariantInfo {
  std::string op;       // "FdppAttention" or "FdppFlatGemm"
  std::string name;     // unique within the op, e.g. "cuda_split_kv"
  Backend backend;
  std::string kind;     // of a product: "gemv", "flat" or "large", the paper's implementations A, B and C; else ""
  std::string summary;  // one line for people
};

// Every variant of this build, in the order of the registry.
FDPP_API std::vector<VariantInfo> list_variants();

// From now on `op` runs `variant` wherever the variant's backend runs at all; a problem that the variant does not take
// is then an error. An empty variant lifts it. FDPP_FORCE="FdppFlatGemm=cpu_avx2_gemv,..." does the same from the
// environment, read once. Thread-safe.
FDPP_API Status force_variant(const std::string& op, const std::string& variant);

// From now on the table at `path`, as fdpp-tune writes it, decides on the device that it was measured on, before
// FDPP_TABLE's, the one beside the library and those that come with it. On other devices it is set aside, which standard
// error and the plans' reasons say. An empty path forgets all that were loaded so. Thread-safe.
// invalid_argument: the file is missing or malformed; not_supported: a later version of the library wrote it.
FDPP_API Status load_table(const std::string& path);

// What a node ran last. Rows are kept by op and node name, the newest call winning.
struct PlanRecord {
  std::string op;
  std::string node;     // the graph's node name; "" outside a graph
  std::string variant;
  std::string reason;
  std::string problem;  // describe(problem)
  int num_splits = 1;
  size_t workspace_bytes = 0;
  uint64_t out_of_range_rows = 0;  // unified softmax: query rows of all calls that left the interval around phi
};

// Where one node's calls are recorded: cheap enough for every call, safe from several threads. Adapters hold one for
// each of their nodes. With FDPP_LOG=1 each change of variant is printed to standard error.
class FDPP_API PlanSlot {
 public:
  static PlanSlot& of(const std::string& op, const std::string& node);  // lives as long as the library
  void record(const AttentionProblem& problem, const AttentionPlan& plan);
  void record(const GemmProblem& problem, const GemmPlan& plan);
  // The node's counter for ExecutionContext::out_of_range_rows on `device` (the current one, if a GPU), made by the
  // first call. Sessions may have nodes of one name on several devices: each device gets a word of its own.
  Status counter(const DeviceInfo& device, uint64_t** word);

  struct State;
  explicit PlanSlot(State* state) : state_(state) {}

 private:
  State* state_;
};

// The last plan of each node in the order in which nodes were first seen. A captured GPU graph records at capture only.
FDPP_API std::vector<PlanRecord> last_plans();
FDPP_API void clear_plans();

}  // namespace fdpp
