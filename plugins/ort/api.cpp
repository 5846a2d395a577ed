#include "ort/api.h"

#include <cstring>
#include <vector>

namespace fdpp::ort {
namespace {

struct TypeName {
  DType dtype;
  ONNXTensorElementDataType type;
};
constexpr TypeName kTypes[] = {
    {DType::f32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},     {DType::f16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {DType::bf16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}, {DType::i32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {DType::i64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},     {DType::u8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {DType::i8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},       {DType::f8e4m3, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN},
};

OrtErrorCode error_code(StatusCode code) {
  switch (code) {
    case StatusCode::ok: return ORT_OK;
    case StatusCode::invalid_argument: return ORT_INVALID_ARGUMENT;
    case StatusCode::not_supported: return ORT_NOT_IMPLEMENTED;
    case StatusCode::device_error: return ORT_RUNTIME_EXCEPTION;
    case StatusCode::out_of_memory: return ORT_FAIL;
  }
  return ORT_FAIL;
}

Status view_of(const OrtApi& api, const OrtValue* value, TensorView* view) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  FDPP_ORT(api, api.GetTensorTypeAndShape(value, &info));
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  Status status = from_ort(api, api.GetTensorElementType(info, &type));
  if (status.ok()) status = from_ort(api, api.GetDimensionsCount(info, &rank));
  if (status.ok() && rank > TensorView::kMaxRank)
    status = invalid_argument("fdpp: a tensor of rank " + std::to_string(rank) + ", expected at most " +
                              std::to_string(TensorView::kMaxRank));
  if (status.ok()) status = from_ort(api, api.GetDimensions(info, view->dims, rank));
  api.ReleaseTensorTypeAndShapeInfo(info);
  FDPP_RETURN_IF_ERROR(status);
  view->rank = static_cast<int>(rank);
  view->dtype = from_ort(type);
  // The C API has one accessor for both uses; inputs are only read.
  FDPP_ORT(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &view->data));
  return {};
}

}  // namespace

OrtStatus* to_ort(const OrtApi& api, const Status& status) {
  return status.ok() ? nullptr : api.CreateStatus(error_code(status.code()), status.message().c_str());
}

Status from_ort(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return {};
  Status result = device_error(std::string("onnxruntime: ") + api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  return result;
}

ONNXTensorElementDataType to_ort(DType dtype) {
  for (const TypeName& t : kTypes)
    if (t.dtype == dtype) return t.type;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

DType from_ort(ONNXTensorElementDataType type) {
  for (const TypeName& t : kTypes)
    if (t.type == type) return t.dtype;
  return DType::undefined;
}

Status NodeInfo::name(std::string* out) const {
  size_t size = 0;
  FDPP_ORT(api_, api_.KernelInfo_GetNodeName(info_, nullptr, &size));
  std::vector<char> text(size);
  FDPP_ORT(api_, api_.KernelInfo_GetNodeName(info_, text.data(), &size));
  *out = text.data();
  return {};
}

bool NodeInfo::absent(OrtStatus* status, Status* error) const {
  if (status == nullptr) return false;
  // The API tells an absent attribute from one of the wrong type by its message alone.
  const bool is_absent = std::strstr(api_.GetErrorMessage(status), "No attribute with") != nullptr;
  Status converted = from_ort(api_, status);
  if (!is_absent) *error = invalid_argument(converted.message());
  return is_absent;
}

Status NodeInfo::attribute(const char* name, int64_t* out) const {
  Status error;
  int64_t value = 0;
  if (!absent(api_.KernelInfoGetAttribute_int64(info_, name, &value), &error) && error.ok()) *out = value;
  return error;
}

Status NodeInfo::attribute(const char* name, bool* out) const {
  int64_t value = *out;
  FDPP_RETURN_IF_ERROR(attribute(name, &value));
  if (value != 0 && value != 1)
    return invalid_argument(std::string("fdpp: attribute ") + name + " is " + std::to_string(value) + ", expected 0 or 1");
  *out = value == 1;
  return {};
}

Status NodeInfo::attribute(const char* name, float* out) const {
  Status error;
  float value = 0;
  if (!absent(api_.KernelInfoGetAttribute_float(info_, name, &value), &error) && error.ok()) *out = value;
  return error;
}

Status NodeInfo::attribute(const char* name, std::string* out) const {
  Status error;
  size_t size = 0;
  if (absent(api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size), &error) || !error.ok()) return error;
  std::vector<char> text(size);
  FDPP_ORT(api_, api_.KernelInfoGetAttribute_string(info_, name, text.data(), &size));
  *out = text.data();
  return {};
}

Status CallContext::inputs(TensorView* views, size_t count) const {
  size_t given = 0;
  FDPP_ORT(api_, api_.KernelContext_GetInputCount(context_, &given));
  for (size_t i = 0; i < count && i < given; ++i) {
    const OrtValue* value = nullptr;
    FDPP_ORT(api_, api_.KernelContext_GetInput(context_, i, &value));
    if (value != nullptr) FDPP_RETURN_IF_ERROR(view_of(api_, value, &views[i]));
  }
  return {};
}

Status CallContext::output(size_t index, DType dtype, const int64_t* dims, int rank, TensorView* view) const {
  OrtValue* value = nullptr;
  FDPP_ORT(api_, api_.KernelContext_GetOutput(context_, index, dims, static_cast<size_t>(rank), &value));
  view->dtype = dtype;
  view->rank = rank;
  std::memcpy(view->dims, dims, sizeof(int64_t) * static_cast<size_t>(rank));
  FDPP_ORT(api_, api_.GetTensorMutableData(value, &view->data));
  return {};
}

Status CallContext::gpu_stream(void** stream) const {
  FDPP_ORT(api_, api_.KernelContext_GetGPUComputeStream(context_, stream));
  return {};
}

Workspace::~Workspace() {
  if (data_ != nullptr) allocator_->Free(allocator_, data_);
}

Status Workspace::allocate(size_t bytes) {
  if (bytes == 0) return {};
  const OrtApi& api = context_.api();
  if (in_stream_order_) {
    const OrtMemoryInfo* memory = nullptr;
    FDPP_ORT(api, api.AllocatorGetInfo(allocator_, &memory));
    FDPP_ORT(api, api.KernelContext_GetScratchBuffer(context_.get(), memory, bytes, &data_));
  } else {
    // Not GetScratchBuffer: 1.20 takes a stream for granted there, and the CPU has none.
    FDPP_ORT(api, api.AllocatorAlloc(allocator_, bytes, &data_));
  }
  if (data_ == nullptr)
    return {StatusCode::out_of_memory, "fdpp: no memory for a workspace of " + std::to_string(bytes) + " bytes"};
  return {};
}

}  // namespace fdpp::ort
