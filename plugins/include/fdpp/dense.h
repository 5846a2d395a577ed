// The dense form of an op, for runtimes that know neither omitted inputs nor elements of a byte: TensorRT. ONNX Runtime
// takes it too, so one graph serves both.
//
// A node of domain "fdpp.dense" has the op's attributes and one more, `inputs`: the names of those inputs that are there,
// in the op's order, parted by commas. Its inputs are these alone, as the op has them but for
//   total_sequence_length   any tensor whose last dimension is that number, such as an attention mask; its values are not read
//   B of int8, fp8, int4    int32 [R, bytes of a row / 4]: the same bytes, in words, of which a row has whole ones;
//                           next_weight likewise
//   zero_points             int32 [ceil(bytes / 4)]: the same bytes, rows side by side
#pragma once

#include <string>
#include <vector>

#include "fdpp/gemm.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

inline constexpr const char* kDenseDomain = "fdpp.dense";
inline constexpr const char* kDenseAttribute = "inputs";

// Which of an op's inputs a dense node has.
class FDPP_API DenseInputs {
 public:
  // invalid_argument: an unknown name, one out of order, or a required input that is missing.
  Status parse(const OpSpec& spec, const std::string& names);

  const std::string& names() const { return names_; }
  int count() const { return static_cast<int>(inputs_.size()); }
  int input(int i) const { return inputs_[static_cast<size_t>(i)]; }  // the place in the op's order of the node's i-th
  int find(int input) const;                                          // the other way round; -1: it is not there

 private:
  std::string names_;
  std::vector<int> inputs_;
};

// From a dense node's tensors (`given`, dense.count() of them) to the op's (`inputs`, in its order, absent ones included).
// `total` takes the value of total_sequence_length, which `inputs` then points to. `layout`: what check_gemm_attributes()
// made of the attributes, once for all calls.
FDPP_API Status expand_attention(const DenseInputs& dense, const TensorView* given, int32_t* total, TensorView* inputs);
FDPP_API Status expand_gemm(const DenseInputs& dense, const GemmProblem& layout, const TensorView* given,
                            TensorView* inputs);

}  // namespace fdpp
