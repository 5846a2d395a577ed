#include "ort/dense_op.h"

#include <atomic>
#include <string>
#include <vector>

namespace fdpp::ort {
namespace {

// A tensor's element type and dimensions as far as the runtime knows them while it loads a graph.
struct Info {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;       // -1: not a number; no dimension at all where the rank is unknown
  std::vector<std::string> names;  // of those that are not numbers; may be empty

  void resize(size_t rank) {
    dims.resize(rank, -1);
    names.resize(rank);
  }
  void forget(size_t i) {
    dims[i] = -1;
    names[i].clear();
  }
};

// A dimension that nobody has named. The runtime takes equal names for equal sizes, so each gets a name of its own.
std::string new_name() {
  static std::atomic<uint64_t> count{0};
  return "fdpp_" + std::to_string(count++);
}

// What the runtime tells about one node while it infers its outputs' types.
class InferenceContext {
 public:
  InferenceContext(const OrtApi& api, OrtShapeInferContext* context) : api_(api), context_(context) {}

  Status attribute(const char* name, int64_t* out) const {
    const OrtOpAttr* found = nullptr;
    size_t size = 0;
    FDPP_ORT(api_, api_.ShapeInferContext_GetAttribute(context_, name, &found));
    FDPP_ORT(api_, api_.ReadOpAttr(found, ORT_OP_ATTR_INT, out, sizeof(*out), &size));
    return {};
  }

  Status attribute(const char* name, std::string* out) const {
    const OrtOpAttr* found = nullptr;
    size_t size = 0;
    FDPP_ORT(api_, api_.ShapeInferContext_GetAttribute(context_, name, &found));
    // Given no room, the runtime says how much it wants, in an error.
    api_.ReleaseStatus(api_.ReadOpAttr(found, ORT_OP_ATTR_STRING, nullptr, 0, &size));
    std::vector<char> text(size + 1);
    FDPP_ORT(api_, api_.ReadOpAttr(found, ORT_OP_ATTR_STRING, text.data(), size, &size));
    *out = text.data();
    return {};
  }

  Status input(int index, Info* out) const {
    size_t count = 0, rank = 0;
    FDPP_ORT(api_, api_.ShapeInferContext_GetInputCount(context_, &count));
    if (static_cast<size_t>(index) >= count)
      return invalid_argument("fdpp: input " + std::to_string(index) + " of " + std::to_string(count) + " is asked for");
    OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
    FDPP_ORT(api_, api_.ShapeInferContext_GetInputTypeShape(context_, static_cast<size_t>(index), &info));
    FDPP_ORT(api_, api_.GetTensorElementType(info, &out->type));
    FDPP_ORT(api_, api_.GetDimensionsCount(info, &rank));
    out->dims.resize(rank);
    std::vector<const char*> names(rank, "");
    FDPP_ORT(api_, api_.GetDimensions(info, out->dims.data(), rank));
    FDPP_ORT(api_, api_.GetSymbolicDimensions(info, names.data(), rank));
    out->names.assign(names.begin(), names.end());
    return {};
  }

  Status set_output(size_t index, Info info) const {
    std::vector<const char*> names;
    for (size_t i = 0; i < info.dims.size(); ++i) {
      if (info.dims[i] < 0 && info.names[i].empty()) info.names[i] = new_name();
      names.push_back(info.names[i].c_str());
    }
    OrtTensorTypeAndShapeInfo* made = nullptr;
    FDPP_ORT(api_, api_.CreateTensorTypeAndShapeInfo(&made));
    Status status = from_ort(api_, api_.SetTensorElementType(made, info.type));
    if (status.ok()) status = from_ort(api_, api_.SetDimensions(made, info.dims.data(), info.dims.size()));
    if (status.ok()) status = from_ort(api_, api_.SetSymbolicDimensions(made, names.data(), names.size()));
    if (status.ok()) status = from_ort(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, index, made));
    api_.ReleaseTensorTypeAndShapeInfo(made);
    return status;
  }

 private:
  const OrtApi& api_;
  OrtShapeInferContext* context_;
};

Status infer_gemm(const InferenceContext& node) {
  Info y;
  int64_t columns = 0;
  FDPP_RETURN_IF_ERROR(node.input(kGemmA, &y));
  FDPP_RETURN_IF_ERROR(node.attribute("N", &columns));
  if (y.dims.empty()) return {};  // of unknown rank, which cannot be passed on: the graph has to state Y's type
  y.dims.back() = columns;
  y.names.back().clear();
  return node.set_output(kGemmY, y);
}

Status infer_attention(const InferenceContext& node) {
  std::string names;
  DenseInputs dense;
  FDPP_RETURN_IF_ERROR(node.attribute(kDenseAttribute, &names));
  FDPP_RETURN_IF_ERROR(dense.parse(attention_spec(), names));
  Info output, present;
  FDPP_RETURN_IF_ERROR(node.input(kAttnQuery, &output));
  output.resize(3);
  present.type = output.type;
  if (dense.find(kAttnPastKey) >= 0) FDPP_RETURN_IF_ERROR(node.input(dense.find(kAttnPastKey), &present));
  present.resize(4);
  // How wide the heads are and how many tokens present holds is known when the node runs.
  output.forget(2);
  present.forget(2);
  FDPP_RETURN_IF_ERROR(node.set_output(kAttnOutput, output));
  FDPP_RETURN_IF_ERROR(node.set_output(kAttnPresentKey, present));
  return node.set_output(kAttnPresentValue, present);
}

}  // namespace

DenseOp::DenseOp(const OrtApi& api, const OpSpec& spec, Backend backend, KernelFactory factory)
    : OpBase(spec, backend, Form::dense, factory), api_(api) {
  // Outputs are variadic as well, with exactly as many as the op has: the runtime lets no required output have a type
  // that it cannot tell from the op alone, unless it is the only one.
  GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_VARIADIC; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetOutputTypeCount = GetInputTypeCount;
  GetOutputType = GetInputType;
  GetOutputCharacteristic = GetInputCharacteristic;
  GetVariadicOutputMinArity = [](const OrtCustomOp* op) {
    return static_cast<int>(static_cast<const DenseOp*>(op)->spec_.outputs.size());
  };
  GetVariadicOutputHomogeneity = GetVariadicInputHomogeneity;
  InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) -> OrtStatus* {
    const auto* self = static_cast<const DenseOp*>(op);
    const InferenceContext node(self->api_, context);
    // The runtime never looks at an error from here, nor frees it. A graph that states its types gets as far as the
    // kernel, which says what is wrong.
    self->api_.ReleaseStatus(guarded(
        self->api_, [&] { return &self->spec_ == &gemm_spec() ? infer_gemm(node) : infer_attention(node); }));
    return nullptr;
  };
}

Status read_dense_inputs(const NodeInfo& node, const OpSpec& spec, std::unique_ptr<DenseInputs>* dense) {
  std::string names;
  FDPP_RETURN_IF_ERROR(node.attribute(kDenseAttribute, &names));
  auto made = std::make_unique<DenseInputs>();
  FDPP_RETURN_IF_ERROR(made->parse(spec, names));
  size_t given = 0;
  FDPP_ORT(node.api(), node.api().KernelInfo_GetInputCount(node.get(), &given));
  if (given != static_cast<size_t>(made->count()))
    return invalid_argument(std::string(spec.name) + ": inputs is \"" + names + "\" but the node has " +
                            std::to_string(given) + " of them");
  *dense = std::move(made);
  return {};
}

}  // namespace fdpp::ort
