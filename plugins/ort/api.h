// ONNX Runtime's C API at the lowest version that we support, in our own terms: statuses, tensors, nodes, contexts.
// The API table travels with each object: one process can hold several copies of ONNX Runtime.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <string>

#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp::ort {

// 1.20: the oldest runtime that this library loads in. No function newer than this API is called.
inline constexpr uint32_t kApiVersion = 20;

OrtStatus* to_ort(const OrtApi& api, const Status& status);
// Takes ownership of `status`; null is success.
Status from_ort(const OrtApi& api, OrtStatus* status);

ONNXTensorElementDataType to_ort(DType dtype);
DType from_ort(ONNXTensorElementDataType type);

// Calls `body`, which returns a Status, and turns what it returns or throws into an OrtStatus.
template <typename Body>
OrtStatus* guarded(const OrtApi& api, Body body) noexcept {
  try {
    return to_ort(api, body());
  } catch (const std::exception& e) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, e.what());
  } catch (...) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, "fdpp: unknown exception");
  }
}

// The node that a kernel is created for.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  const OrtApi& api() const { return api_; }
  const OrtKernelInfo* get() const { return info_; }
  Status name(std::string* out) const;
  // Attributes: absent ones leave `out` as it is.
  Status attribute(const char* name, int64_t* out) const;
  Status attribute(const char* name, bool* out) const;
  Status attribute(const char* name, float* out) const;
  Status attribute(const char* name, std::string* out) const;

 private:
  // Whether `status` says that the attribute is absent; other errors go to `error`.
  bool absent(OrtStatus* status, Status* error) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// One call of a kernel.
class CallContext {
 public:
  CallContext(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  const OrtApi& api() const { return api_; }
  OrtKernelContext* get() const { return context_; }
  // Fills `count` views; inputs that the node omits stay absent.
  Status inputs(TensorView* views, size_t count) const;
  Status output(size_t index, DType dtype, const int64_t* dims, int rank, TensorView* view) const;
  Status gpu_stream(void** stream) const;

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

// Memory that one call borrows from the runtime's arena. With `in_stream_order` the arena lends what is given back only
// to work that comes later in the call's stream: right for a GPU, where the call returns before its kernels have run.
class Workspace {
 public:
  Workspace(const CallContext& context, OrtAllocator* allocator, bool in_stream_order)
      : context_(context), allocator_(allocator), in_stream_order_(in_stream_order) {}
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  Status allocate(size_t bytes);
  void* data() const { return data_; }

 private:
  const CallContext& context_;
  OrtAllocator* allocator_;
  bool in_stream_order_;
  void* data_ = nullptr;
};

}  // namespace fdpp::ort

#define FDPP_ORT(api, call) FDPP_RETURN_IF_ERROR(::fdpp::ort::from_ort((api), (call)))
