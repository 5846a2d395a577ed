#include "dispatch/force.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

#include "fdpp/dispatch.h"

namespace fdpp {
namespace {

Status check_name(const std::string& op, const std::string& variant) {
  std::string known;
  for (const VariantInfo& v : list_variants()) {
    if (v.op != op) continue;
    if (v.name == variant) return {};
    known += (known.empty() ? "" : ", ") + v.name;
  }
  if (known.empty()) return invalid_argument("force: no op is named \"" + op + "\"");
  return invalid_argument("force: " + op + " has no variant \"" + variant + "\" in this build; it has " + known);
}

class Overrides {
 public:
  static Overrides& instance() {
    static Overrides overrides;
    return overrides;
  }

  std::string get(const char* op) {
    if (!any_.load(std::memory_order_acquire)) return "";  // the common case takes no lock
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = by_op_.find(op);
    return it == by_op_.end() ? "" : it->second;
  }

  Status set(const std::string& op, const std::string& variant) {
    if (!variant.empty()) FDPP_RETURN_IF_ERROR(check_name(op, variant));
    std::lock_guard<std::mutex> lock(mutex_);
    if (variant.empty()) {
      by_op_.erase(op);
    } else {
      by_op_[op] = variant;
    }
    any_.store(!by_op_.empty(), std::memory_order_release);
    return {};
  }

 private:
  Overrides() {
    const char* text = std::getenv("FDPP_FORCE");
    std::stringstream entries(text ? text : "");
    for (std::string entry; std::getline(entries, entry, ',');) {
      const size_t equals = entry.find('=');
      const std::string op = entry.substr(0, equals);
      const std::string variant = equals == std::string::npos ? "" : entry.substr(equals + 1);
      const Status status = variant.empty() ? invalid_argument("expected OP=VARIANT") : set(op, variant);
      // A constructor cannot fail and a library must not abort: say it, and run without the override.
      if (!status.ok()) std::fprintf(stderr, "fdpp: FDPP_FORCE entry \"%s\" ignored: %s\n", entry.c_str(), status.message().c_str());
    }
  }

  std::mutex mutex_;
  std::map<std::string, std::string> by_op_;
  std::atomic<bool> any_{false};
};

}  // namespace

std::string forced_variant(const char* op) { return Overrides::instance().get(op); }

Status force_variant(const std::string& op, const std::string& variant) {
  return Overrides::instance().set(op, variant);
}

}  // namespace fdpp
