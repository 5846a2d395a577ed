// Which splits are well-formed, whoever made them, and which are worth timing.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "fdpp/attention.h"
#include "fdpp/gemm.h"

namespace fdpp {

Status check_split(const GemmSplit& split);
Status check_split(const AttentionSplit& split);

// The plan's split, then those that its variant adds, each once.
template <typename Plan, typename Problem, typename Split>
void list_splits(const Plan& plan, const Problem& problem, const DeviceInfo& device, std::vector<Split>* splits) {
  splits->assign(1, plan.split);
  std::vector<Split> offered;
  if (plan.variant->splits != nullptr) plan.variant->splits(problem, device, &offered);
  for (const Split& s : offered)
    if (std::find(splits->begin(), splits->end(), s) == splits->end()) splits->push_back(s);
}

}  // namespace fdpp
