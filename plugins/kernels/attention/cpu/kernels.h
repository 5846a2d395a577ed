// The attention kernel, compiled once for each instruction set. The files that are compiled with its flags hold nothing
// else: no inline function of theirs may reach a processor that lacks the instructions.
#pragma once

#include "fdpp/device.h"
#include "kernels/attention/params.h"

namespace fdpp {

// The context of every query row is cut into num_splits pieces; where there are several, partials holds their results:
// B * S * Hq * num_splits * (D + 2) floats.
using AttentionKernel = void(const AttentionParams& params, int num_splits, float* partials,
                             const ExecutionContext& context);

AttentionKernel attention_scalar;
AttentionKernel attention_avx2;
AttentionKernel attention_avx512;

}  // namespace fdpp
