// FdppGreedyStep: from a decode step's logits the inputs of the step that appends the likeliest tokens. It stands beside a
// decoder's graph, so that greedy decoding leaves a step's inputs where the next one reads them.
//
//   check_greedy_step()  ->  run_greedy_step()
//
// Layouts (row-major, B rows): logits [B, 1, V]; positions int64 [B, 1], of the tokens whose logits these are; attention_mask
// int64 [B, C], of which only the shape is read. next_tokens int64 [B, 1]: the first of the greatest logits, 0 for a row with a
// NaN; next_positions [B, 1] = positions + 1; next_attention_mask [B, C]: ones in places 0 to next_positions, then zeros;
// host_tokens int64 [B, 1]: next_tokens once more, but -1 for a row with a NaN, for the caller to put where the host reads them
// while the next step, which must not read past an embedding, runs. An output may be the input that it continues.
#pragma once

#include <cstdint>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

struct GreedyStep {
  int64_t batch = 0;       // B
  int64_t vocabulary = 0;  // V, at least 1 and below 2^31
  int64_t capacity = 0;    // C
  DType dtype = DType::undefined;  // of the logits: float32 or float16
};

FDPP_API Status check_greedy_step(const TensorView* inputs, GreedyStep* step);
FDPP_API Status run_greedy_step(const GreedyStep& step, const TensorView* inputs, const TensorView* outputs, Backend backend,
                                const ExecutionContext& context);

}  // namespace fdpp
