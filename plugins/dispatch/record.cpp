// The record of what ran.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "dispatch/registry.h"
#include "fdpp/dispatch.h"

namespace fdpp {

namespace {

int splits_of(const AttentionPlan& plan) { return plan.num_splits(); }
int splits_of(const GemmPlan& plan) { return plan.split.pieces; }

}  // namespace

struct PlanSlot::State {
  std::string op;
  std::string node;
  std::mutex mutex;
  // Problems are kept as they are and put into words when somebody asks, which keeps record() cheap.
  std::variant<std::monostate, AttentionProblem, GemmProblem> problem;
  const char* variant = nullptr;
  const char* reason = "";
  int num_splits = 1;
  size_t workspace_bytes = 0;
  std::map<std::pair<Backend, int>, DeviceCounter> out_of_range_rows;  // by backend and ordinal

  template <typename Problem, typename Plan>
  void record(const Problem& new_problem, const Plan& plan) {
    static const bool log = [] {
      const char* text = std::getenv("FDPP_LOG");
      return text && std::strcmp(text, "0") != 0;
    }();
    std::lock_guard<std::mutex> lock(mutex);
    const bool changed = variant != plan.variant->name;
    problem = new_problem;
    variant = plan.variant->name;
    reason = plan.reason;
    num_splits = splits_of(plan);
    workspace_bytes = plan.workspace_bytes;
    if (log && changed)
      std::fprintf(stderr, "fdpp: %s %s: %s x%d (%s) for %s\n", op.c_str(), node.c_str(), variant, num_splits, reason,
                   describe(new_problem).c_str());
  }
};

namespace {

struct Slots {
  std::mutex mutex;
  std::vector<std::unique_ptr<PlanSlot::State>> states;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<PlanSlot>> by_node;

  static Slots& instance() {
    static Slots* slots = new Slots;  // never destroyed: sessions may outlive static destruction
    return *slots;
  }
};

}  // namespace

PlanSlot& PlanSlot::of(const std::string& op, const std::string& node) {
  Slots& slots = Slots::instance();
  std::lock_guard<std::mutex> lock(slots.mutex);
  std::unique_ptr<PlanSlot>& slot = slots.by_node[{op, node}];
  if (!slot) {
    slots.states.push_back(std::make_unique<State>());
    slots.states.back()->op = op;
    slots.states.back()->node = node;
    slot = std::make_unique<PlanSlot>(slots.states.back().get());
  }
  return *slot;
}

void PlanSlot::record(const AttentionProblem& problem, const AttentionPlan& plan) { state_->record(problem, plan); }
void PlanSlot::record(const GemmProblem& problem, const GemmPlan& plan) { state_->record(problem, plan); }

Status PlanSlot::counter(const DeviceInfo& device, uint64_t** word) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  DeviceCounter& counter = state_->out_of_range_rows[{device.backend, device.ordinal}];
  if (counter.word() == nullptr) FDPP_RETURN_IF_ERROR(counter.create(device.backend));
  *word = counter.word();
  return {};
}

std::vector<PlanRecord> last_plans() {
  Slots& slots = Slots::instance();
  std::lock_guard<std::mutex> lock(slots.mutex);
  std::vector<PlanRecord> records;
  for (const auto& state : slots.states) {
    std::lock_guard<std::mutex> state_lock(state->mutex);
    if (state->variant == nullptr) continue;
    std::string problem;
    if (const auto* attention = std::get_if<AttentionProblem>(&state->problem)) problem = describe(*attention);
    if (const auto* gemm = std::get_if<GemmProblem>(&state->problem)) problem = describe(*gemm);
    uint64_t out_of_range_rows = 0;
    for (const auto& [device, counter] : state->out_of_range_rows) {
      uint64_t count = 0;
      // A GPU that cannot be read any more fails its next call; a record of what ran is no place to say so.
      (void)counter.read(&count);
      out_of_range_rows += count;
    }
    records.push_back({state->op, state->node, state->variant, state->reason, problem, state->num_splits,
                       state->workspace_bytes, out_of_range_rows});
  }
  return records;
}

void clear_plans() {
  Slots& slots = Slots::instance();
  std::lock_guard<std::mutex> lock(slots.mutex);
  for (const auto& state : slots.states) {
    std::lock_guard<std::mutex> state_lock(state->mutex);
    state->variant = nullptr;
  }
}

}  // namespace fdpp
