// What is wanted of the registry before anybody asks whether a variant takes the problem.
#pragma once

#include "fdpp/attention.h"
#include "fdpp/device.h"
#include "fdpp/gemm.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

struct GemmChoice {
  GemmKind kind = GemmKind::flat;
  const GemmVariant* variant = nullptr;  // null: any of the kind, with its own split
  GemmSplit split;                       // of `variant`
  const char* reason = "";               // static text
};

// A table that was measured on the device, for the shape or one near it; else the model of costs.
GemmChoice choose_gemm(const GemmProblem& problem, const DeviceInfo& device);

struct AttentionChoice {
  const AttentionVariant* variant = nullptr;  // null: the first of the registry that takes the problem
  AttentionSplit split;
  const char* reason = "first in the registry that takes it";
};

// A table's own where the device has one with that attention in it.
AttentionChoice choose_attention(const AttentionProblem& problem, const DeviceInfo& device);

// Whether a plan is what was chosen, not an override or a stand-in, so that the choice's split belongs to it.
template <typename Choice, typename Plan>
bool is_choice(const Choice& choice, const Plan& plan) {
  return plan.variant == choice.variant && plan.reason == choice.reason;
}

}  // namespace fdpp
