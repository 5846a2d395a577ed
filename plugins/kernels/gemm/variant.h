// One GEMM kernel family as the registry sees it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "fdpp/gemm.h"
#include "kernels/gemm/params.h"

namespace fdpp {

// What a variant is good for; the dispatch table speaks in these (the paper's implementations A, B and C).
enum class GemmKind : uint8_t { gemv, flat, large };
inline const char* gemm_kind_name(GemmKind kind) {
  return kind == GemmKind::gemv ? "gemv" : kind == GemmKind::flat ? "flat" : "large";
}

struct GemmVariant {
  const char* name;
  Backend backend;
  GemmKind kind;
  const char* summary;
  bool (*supports)(const GemmProblem& problem, const DeviceInfo& device, std::string* why);
  GemmSplit (*split)(const GemmProblem& problem, const DeviceInfo& device);
  size_t (*workspace_bytes)(const GemmProblem& problem, const GemmSplit& split);
  Status (*run)(const GemmParams& params, const GemmSplit& split, void* workspace, const ExecutionContext& context);
  // Adds the splits that are worth timing for a problem that the variant takes. Null: there is its own choice alone.
  void (*splits)(const GemmProblem& problem, const DeviceInfo& device, std::vector<GemmSplit>* splits) = nullptr;
  // Whether it comes before the variants of its kind that the registry has after it. Null: wherever it takes the problem.
  bool (*suits)(const GemmProblem& problem, const DeviceInfo& device) = nullptr;
};

}  // namespace fdpp
