// Which splits are well-formed, whoever made them.
#pragma once

#include <string>

#include "fdpp/attention.h"
#include "fdpp/gemm.h"

namespace fdpp {

Status check_split(const GemmSplit& split);
Status check_split(const AttentionSplit& split);

}  // namespace fdpp
