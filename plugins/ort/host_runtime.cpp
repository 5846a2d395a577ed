#include "ort/host_runtime.h"

namespace fdpp::ort {
namespace {

constexpr int kGemmOpset = 13;

// An attribute for CreateOp, released with the scope.
class OpAttribute {
 public:
  OpAttribute(const OrtApi& api) : api_(api) {}
  ~OpAttribute() { api_.ReleaseOpAttr(attribute_); }
  OpAttribute(const OpAttribute&) = delete;
  OpAttribute& operator=(const OpAttribute&) = delete;

  Status set(const char* name, const void* value, OrtOpAttrType type) {
    FDPP_ORT(api_, api_.CreateOpAttr(name, value, 1, type, &attribute_));
    return {};
  }
  const OrtOpAttr* get() const { return attribute_; }

 private:
  const OrtApi& api_;
  OrtOpAttr* attribute_ = nullptr;
};

// A float32 matrix that the runtime sees through an OrtValue; released with the scope.
class Matrix {
 public:
  Matrix(const OrtApi& api) : api_(api) {}
  ~Matrix() { api_.ReleaseValue(value_); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  Status wrap(const OrtMemoryInfo* memory, const float* data, int64_t rows, int64_t columns) {
    const int64_t dims[] = {rows, columns};
    FDPP_ORT(api_, api_.CreateTensorWithDataAsOrtValue(memory, const_cast<float*>(data),
                                                       sizeof(float) * static_cast<size_t>(rows * columns), dims, 2,
                                                       ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value_));
    return {};
  }
  OrtValue* get() const { return value_; }

 private:
  const OrtApi& api_;
  OrtValue* value_ = nullptr;
};

}  // namespace

RuntimeGemm::~RuntimeGemm() {
  if (api_ == nullptr) return;
  api_->ReleaseOp(op_);
  api_->ReleaseMemoryInfo(memory_);
}

Status RuntimeGemm::create(const NodeInfo& node) {
  api_ = &node.api();
  FDPP_ORT(*api_, api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory_));
  // An op created on its own gets no default attributes: all are spelled out.
  OpAttribute trans_a(*api_), trans_b(*api_), alpha(*api_), beta(*api_);
  const int64_t no = 0, yes = 1;
  const float one = 1, zero = 0;
  FDPP_RETURN_IF_ERROR(trans_a.set("transA", &no, ORT_OP_ATTR_INT));
  FDPP_RETURN_IF_ERROR(trans_b.set("transB", &yes, ORT_OP_ATTR_INT));
  FDPP_RETURN_IF_ERROR(alpha.set("alpha", &one, ORT_OP_ATTR_FLOAT));
  FDPP_RETURN_IF_ERROR(beta.set("beta", &zero, ORT_OP_ATTR_FLOAT));
  const OrtOpAttr* attributes[] = {trans_a.get(), trans_b.get(), alpha.get(), beta.get()};
  const char* constraint = "T";
  const ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  FDPP_ORT(*api_, api_->CreateOp(node.get(), "Gemm", "", kGemmOpset, &constraint, &type, 1, attributes, 4, 2, 1, &op_));
  return {};
}

Status RuntimeGemm::run(const CallContext& context, int64_t m, int64_t n, int64_t k, const float* a, const float* b,
                        float* c) const {
  Matrix ma(*api_), mb(*api_), mc(*api_);
  FDPP_RETURN_IF_ERROR(ma.wrap(memory_, a, m, k));
  FDPP_RETURN_IF_ERROR(mb.wrap(memory_, b, n, k));
  FDPP_RETURN_IF_ERROR(mc.wrap(memory_, c, m, n));
  const OrtValue* inputs[] = {ma.get(), mb.get()};
  OrtValue* outputs[] = {mc.get()};
  FDPP_ORT(*api_, api_->InvokeOp(context.get(), op_, inputs, 2, outputs, 1));
  return {};
}

CallHost::CallHost(const CallContext& context, const RuntimeGemm* gemm) : context_(context), gemm_(gemm) {
  runtime_.state = this;
  runtime_.parallel_for = [](void* state, size_t count, void (*task)(void*, size_t), void* argument) {
    const CallContext& call = static_cast<CallHost*>(state)->context_;
    OrtStatus* status = call.api().KernelContext_ParallelFor(call.get(), task, count, 0, argument);
    if (status == nullptr) return;
    // The runtime refuses before it starts any task; the work is done here then.
    call.api().ReleaseStatus(status);
    for (size_t i = 0; i < count; ++i) task(argument, i);
  };
  if (gemm != nullptr) {
    runtime_.gemm = [](void* state, int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c) {
      const auto* host = static_cast<CallHost*>(state);
      return host->gemm_->run(host->context_, m, n, k, a, b, c);
    };
  }
}

}  // namespace fdpp::ort
