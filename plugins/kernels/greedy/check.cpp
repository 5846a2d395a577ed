// The one place that says which FdppGreedyStep calls are well-formed.
#include "fdpp/greedy_step.h"

namespace fdpp {
namespace {

Status bad(GreedyInput input, const TensorView& given, const std::string& expected) {
  const OpSpec& spec = greedy_step_spec();
  return invalid_argument(std::string(spec.name) + ": " + spec.inputs[input].name + " is " + dtype_name(given.dtype) + " " +
                          shape_string(given) + ", expected " + expected);
}

}  // namespace

Status check_greedy_step(const TensorView* in, GreedyStep* step) {
  const TensorView &logits = in[kGreedyLogits], &positions = in[kGreedyPositions], &mask = in[kGreedyMask];
  if ((logits.dtype != DType::f32 && logits.dtype != DType::f16) || logits.rank != 3 || logits.dims[1] != 1 ||
      logits.dims[2] < 1 || logits.dims[2] > INT32_MAX)
    return bad(kGreedyLogits, logits, "float32 or float16 [batch, 1, vocabulary]");
  const int64_t batch = logits.dims[0];
  const std::string rows = "int64 [" + std::to_string(batch) + ", ";
  if (positions.dtype != DType::i64 || positions.rank != 2 || positions.dims[0] != batch || positions.dims[1] != 1)
    return bad(kGreedyPositions, positions, rows + "1]");
  if (mask.dtype != DType::i64 || mask.rank != 2 || mask.dims[0] != batch)
    return bad(kGreedyMask, mask, rows + "capacity]");
  *step = {batch, logits.dims[2], mask.dims[1], logits.dtype};
  return {};
}

}  // namespace fdpp
