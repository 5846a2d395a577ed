// The tables in force: those that were loaded, the one beside the library, those that are part of it.
#include "dispatch/choice.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "dispatch/cost_model.h"
#include "dispatch/shipped_tables.h"
#include "dispatch/table.h"
#include "fdpp/dispatch.h"

namespace fdpp {
namespace {

using Tables = std::vector<const Table*>;

struct InForce {
  Tables loaded;   // by load_table(), the newest first
  Tables given;    // FDPP_TABLE's, or else the one beside the library
  Tables shipped;  // one a device; those of others are no news
  const char* without = "model of costs";  // why no table decides, where none is for another device
};

// Calls read what is in force without a lock. So neither tables nor what was in force before are ever freed: a plan's
// reason may point into them, too.
class Store {
 public:
  static Store& instance() {
    static Store* const store = new Store;
    return *store;
  }

  const InForce& in_force() const { return *in_force_.load(std::memory_order_acquire); }

  Status load(const std::string& path) {
    const Table* table = nullptr;
    if (!path.empty()) FDPP_RETURN_IF_ERROR(keep(path, nullptr, &table));
    const std::lock_guard<std::mutex> lock(mutex_);
    auto next = std::make_unique<InForce>(in_force());
    Tables& loaded = next->loaded;
    const auto replaced = [&path](const Table* t) { return path.empty() || t->path == path; };
    loaded.erase(std::remove_if(loaded.begin(), loaded.end(), replaced), loaded.end());
    if (table != nullptr) loaded.insert(loaded.begin(), table);
    publish(std::move(next));
    return {};
  }

 private:
  Store() {
    auto first = std::make_unique<InForce>();
    const std::filesystem::path folder = library_folder();
    if (const char* path = std::getenv("FDPP_TABLE"); path != nullptr && *path != '\0') {
      if (!add(path, &first->given)) first->without = "model of costs; FDPP_TABLE cannot be read";
    } else if (std::error_code error; std::filesystem::exists(folder / "fdpp_table.json", error)) {
      if (!add((folder / "fdpp_table.json").string(), &first->given))
        first->without = "model of costs; fdpp_table.json beside the library cannot be read";
    }
    for (const ShippedTable& table : shipped_tables()) add(table.name, &first->shipped, &table.text);
    publish(std::move(first));
  }

  // Where this library lies; a model that fdpp-export wrote has a copy of it beside. Asked by a function that no other
  // copy in the process can stand in for.
  static std::filesystem::path library_folder() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&library_folder), &info) == 0 || info.dli_fname == nullptr) return {};
    return std::filesystem::path(info.dli_fname).parent_path();
  }

  // `text`: the table's; null: what the file at `path` holds.
  Status keep(const std::string& path, const std::string_view* text, const Table** out) {
    auto table = std::make_unique<Table>();
    FDPP_RETURN_IF_ERROR(text != nullptr ? parse_table(path, *text, table.get()) : read_table(path, table.get()));
    const std::lock_guard<std::mutex> lock(mutex_);
    *out = tables_.emplace_back(std::move(table)).get();
    return {};
  }

  bool add(const std::string& path, Tables* to, const std::string_view* text = nullptr) {
    const Table* table = nullptr;
    const Status status = keep(path, text, &table);
    // A constructor cannot fail and a library must not abort: say it, and run without the table.
    if (!status.ok()) std::fprintf(stderr, "fdpp: table ignored: %s\n", status.message().c_str());
    if (table != nullptr) to->push_back(table);
    return table != nullptr;
  }

  void publish(std::unique_ptr<InForce> next) {
    in_force_.store(next.get(), std::memory_order_release);
    history_.push_back(std::move(next));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<const Table>> tables_;
  std::vector<std::unique_ptr<const InForce>> history_;
  std::atomic<const InForce*> in_force_{nullptr};
};

// Said once for each table, not for each call.
void say_foreign(const Table& table, const DeviceInfo& device) {
  if (table.said_foreign.exchange(true, std::memory_order_relaxed)) return;
  std::fprintf(stderr, "fdpp: table ignored: %s was measured on %s, this is %s\n", table.path.c_str(),
               table.device.describe().c_str(), device_key(device).describe().c_str());
}

// Asks the tables of `device` in turn; false: none has an answer, and `reason` says why.
template <typename Problem, typename Choice>
bool choose(const Problem& problem, const DeviceInfo& device, Choice* choice, const char** reason) {
  const InForce& in_force = Store::instance().in_force();
  *reason = in_force.without;
  for (const Tables* tables : {&in_force.loaded, &in_force.given, &in_force.shipped}) {
    for (const Table* table : *tables) {
      if (table->device.matches(device)) {
        if (table->choose(problem, choice)) return true;
      } else if (table->device.backend == device.backend && tables != &in_force.shipped) {
        say_foreign(*table, device);
        *reason = table->foreign.c_str();
      }
    }
  }
  return false;
}

}  // namespace

GemmChoice choose_gemm(const GemmProblem& problem, const DeviceInfo& device) {
  GemmChoice choice;
  const char* reason = nullptr;
  if (!choose(problem, device, &choice, &reason)) {
    choice.kind = cheapest_kind(problem, device);
    choice.reason = reason;
  }
  return choice;
}

AttentionChoice choose_attention(const AttentionProblem& problem, const DeviceInfo& device) {
  AttentionChoice choice;
  const char* reason = nullptr;
  (void)choose(problem, device, &choice, &reason);  // without a table the registry's order decides
  return choice;
}

Status load_table(const std::string& path) { return Store::instance().load(path); }

}  // namespace fdpp
