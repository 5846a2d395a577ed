// Every kernel variant of this build. A variant is one file under kernels/ and one line in registry.cpp.
#pragma once

#include <vector>

#include "kernels/attention/variant.h"
#include "kernels/gemm/variant.h"

namespace fdpp {

// Within a backend, earlier variants are preferred where the table leaves the choice open.
const std::vector<const AttentionVariant*>& attention_variants();
const std::vector<const GemmVariant*>& gemm_variants();

}  // namespace fdpp
