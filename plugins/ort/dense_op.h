// The dense form of our ops (fdpp/dense.h) in ONNX Runtime: any number of inputs of any types.
#pragma once

#include <memory>

#include "fdpp/dense.h"
#include "ort/custom_op.h"

namespace fdpp::ort {

// One op on one backend; it belongs to one copy of ONNX Runtime, whose shape inference passes no API table along.
//
// No output may share the buffer of an input that the runtime chooses: in-place pairs name places, and past_key has no
// place that is the same for all nodes. Whoever binds past and present to one buffer gets them updated in place all the
// same.
class DenseOp : public OpBase {
 public:
  DenseOp(const OrtApi& api, const OpSpec& spec, Backend backend, KernelFactory factory);

 private:
  const OrtApi& api_;
};

// Which inputs `node` has, out of its attribute.
Status read_dense_inputs(const NodeInfo& node, const OpSpec& spec, std::unique_ptr<DenseInputs>* dense);

}  // namespace fdpp::ort
