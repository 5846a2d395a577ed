#include "ort/custom_op.h"

#include <cstring>

namespace fdpp::ort {
namespace {

// The runtime asks for in-place pairs without saying of which op: one function per op.
template <const OpSpec& (*Spec)()>
size_t may_inplace(int** inputs, int** outputs) {
  const std::vector<InPlace>& pairs = Spec().in_place;
  *inputs = new int[pairs.size()];
  *outputs = new int[pairs.size()];
  for (size_t i = 0; i < pairs.size(); ++i) {
    (*inputs)[i] = pairs[i].input;
    (*outputs)[i] = pairs[i].output;
  }
  return pairs.size();
}

void release_inplace(int* inputs, int* outputs) {
  delete[] inputs;
  delete[] outputs;
}

// A kernel together with the API table of the runtime that created it.
struct LiveKernel {
  const OrtApi& api;
  std::unique_ptr<Kernel> kernel;
};

}  // namespace

OpBase::OpBase(const OpSpec& spec, Backend backend, Form form, KernelFactory factory)
    : OrtCustomOp{}, spec_(spec), backend_(backend), form_(form), factory_(factory) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return static_cast<const OpBase*>(op)->spec_.name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) {
    return static_cast<const OpBase*>(op)->backend_ == Backend::cpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
  };
  GetStartVersion = [](const OrtCustomOp*) { return kOpVersion; };
  GetEndVersion = [](const OrtCustomOp*) { return kOpVersion; };

  CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&]() -> Status {
      const auto* self = static_cast<const OpBase*>(op);
      auto live = std::make_unique<LiveKernel>(LiveKernel{*api, nullptr});
      FDPP_RETURN_IF_ERROR(self->factory_(NodeInfo(*api, info), self->backend_, self->form_, &live->kernel));
      *kernel = live.release();
      return {};
    });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto* live = static_cast<const LiveKernel*>(kernel);
    return guarded(live->api, [&] { return live->kernel->compute(CallContext(live->api, context)); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<LiveKernel*>(kernel); };
}

CustomOp::CustomOp(const OpSpec& spec, const OpSignature& signature, KernelFactory factory)
    : OpBase(spec, backend_of(signature), Form::plain, factory), signature_(signature) {
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->spec_.inputs.size(); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->spec_.outputs.size(); };
  GetInputType = [](const OrtCustomOp* op, size_t i) {
    const auto* self = static_cast<const CustomOp*>(op);
    return self->type_of(self->spec_.inputs[i]);
  };
  GetOutputType = [](const OrtCustomOp* op, size_t i) {
    const auto* self = static_cast<const CustomOp*>(op);
    return self->type_of(self->spec_.outputs[i]);
  };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) {
    return static_cast<const CustomOp*>(op)->spec_.inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) {
    return static_cast<const CustomOp*>(op)->spec_.outputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  GetInputMemoryType = [](const OrtCustomOp* op, size_t i) {
    return static_cast<const CustomOp*>(op)->spec_.inputs[i].host_memory ? OrtMemTypeCPUInput : OrtMemTypeDefault;
  };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };

  if (!spec.in_place.empty()) {
    GetMayInplace = may_inplace<attention_spec>;
    ReleaseMayInplace = release_inplace;
  }
}

ONNXTensorElementDataType CustomOp::type_of(const PortSpec& port) const {
  const char* name = port.type;
  for (const TypeBinding& binding : signature_.types)
    if (std::strcmp(binding.variable, port.type) == 0) name = binding.type;
  for (DType dtype :
       {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::i32, DType::i64, DType::u8, DType::i8})
    if (std::strcmp(name, dtype_name(dtype)) == 0) return to_ort(dtype);
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

Backend backend_of(const OpSignature& signature) {
  return std::strcmp(signature.backend, "cpu") == 0 ? Backend::cpu : Backend::cuda;
}

KernelHome::~KernelHome() {
  if (allocator_ != nullptr) api_->ReleaseAllocator(allocator_);
}

Status KernelHome::open(const NodeInfo& node, Backend backend, bool lends_gemm) {
  api_ = &node.api();
  backend_ = backend;
  device_ = cpu_device();
  device_.host_gemm = lends_gemm;
  FDPP_ORT(*api_, api_->KernelInfoGetAllocator(node.get(), OrtMemTypeDefault, &allocator_));
  return {};
}

Status KernelHome::device(const DeviceInfo** out) const {
  // Not in open(): a provider selects its GPU for calls, not for making kernels.
  if (backend_ != Backend::cpu) std::call_once(asked_, [this] { device_status_ = current_gpu_device(&device_); });
  *out = &device_;
  return device_status_;
}

}  // namespace fdpp::ort
