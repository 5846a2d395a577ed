#include "fdpp/dense.h"

#include <algorithm>

namespace fdpp {
namespace {

void place(const DenseInputs& dense, const TensorView* given, TensorView* inputs, int count) {
  std::fill_n(inputs, count, TensorView());
  for (int i = 0; i < dense.count(); ++i) inputs[dense.input(i)] = given[i];
}

Status bad(const char* op, const std::string& what) { return invalid_argument(std::string(op) + ": " + what); }

// The bytes of B or next_weight, of which words are given.
Status unpack_weights(GemmInput input, DType dtype, TensorView* weights) {
  if (weights->dtype != DType::i32 || weights->rank != 2)
    return bad(gemm_spec().name, std::string(gemm_spec().inputs[input].name) + " is " + dtype_name(weights->dtype) + " " +
                                     shape_string(*weights) + ", expected int32 [rows, words] in the dense form");
  weights->dtype = dtype;
  weights->dims[1] *= 4;
  return {};
}

}  // namespace

Status DenseInputs::parse(const OpSpec& spec, const std::string& names) {
  names_ = names;
  inputs_.clear();
  const int all = static_cast<int>(spec.inputs.size());
  int next = 0;
  for (size_t at = 0; at <= names.size() && !names.empty();) {
    const size_t comma = std::min(names.find(',', at), names.size());
    const std::string name = names.substr(at, comma - at);
    const int before = next;
    while (next < all && name != spec.inputs[static_cast<size_t>(next)].name) ++next;
    if (next == all)
      return bad(spec.name, "inputs is \"" + names + "\": " + (name.empty() ? "an empty name" : name) +
                                " is no input of it, or is not in its order");
    inputs_.push_back(next++);
    for (int i = before; i < next - 1; ++i)
      if (!spec.inputs[static_cast<size_t>(i)].optional)
        return bad(spec.name, "inputs is \"" + names + "\": " + spec.inputs[static_cast<size_t>(i)].name + " is missing");
    at = comma + 1;
  }
  for (int i = next; i < all; ++i)
    if (!spec.inputs[static_cast<size_t>(i)].optional)
      return bad(spec.name, "inputs is \"" + names + "\": " + spec.inputs[static_cast<size_t>(i)].name + " is missing");
  return {};
}

int DenseInputs::find(int input) const {
  const auto at = std::find(inputs_.begin(), inputs_.end(), input);
  return at == inputs_.end() ? -1 : static_cast<int>(at - inputs_.begin());
}

Status expand_attention(const DenseInputs& dense, const TensorView* given, int32_t* total, TensorView* inputs) {
  place(dense, given, inputs, kAttnInputCount);
  TensorView& length = inputs[kAttnTotalSequenceLength];
  if (length.rank == 0)
    return bad(attention_spec().name, "total_sequence_length has no dimension, whose extent it is to give in the dense form");
  *total = static_cast<int32_t>(length.dims[length.rank - 1]);
  length = TensorView(total, DType::i32, {});
  return {};
}

Status expand_gemm(const DenseInputs& dense, const GemmProblem& layout, const TensorView* given, TensorView* inputs) {
  place(dense, given, inputs, kGemmInputCount);
  const DType dtype = weight_dtype(layout.weight_format);
  if (dtype_size(dtype) > 1) return {};
  FDPP_RETURN_IF_ERROR(unpack_weights(kGemmB, dtype, &inputs[kGemmB]));
  if (inputs[kGemmNextWeight].present())
    FDPP_RETURN_IF_ERROR(unpack_weights(kGemmNextWeight, dtype, &inputs[kGemmNextWeight]));
  TensorView& zeros = inputs[kGemmZeroPoints];
  if (!zeros.present()) return {};
  const int64_t row_bytes = (layout.blocks() + 1) / 2, words = (layout.weight_rows() * row_bytes + 3) / 4;
  if (zeros.dtype != DType::i32 || zeros.rank != 1 || zeros.dims[0] != words)
    return bad(gemm_spec().name, std::string("zero_points is ") + dtype_name(zeros.dtype) + " " + shape_string(zeros) +
                                     ", expected int32 [" + std::to_string(words) + "] in the dense form");
  zeros = TensorView(zeros.data, DType::u8, {layout.weight_rows(), row_bytes});
  return {};
}

}  // namespace fdpp
