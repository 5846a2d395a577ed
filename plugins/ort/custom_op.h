// OrtCustomOp over an OpSpec: everything that the runtime asks of an op is answered from the spec.
#pragma once

#include <memory>
#include <mutex>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "ort/api.h"

namespace fdpp::ort {

// One node's kernel. compute() may be called from several threads at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual Status compute(const CallContext& context) const = 0;
};

using KernelFactory = Status (*)(const NodeInfo& node, Backend backend, std::unique_ptr<Kernel>* kernel);

// One op on one backend with one combination of element types.
class CustomOp : public OrtCustomOp {
 public:
  CustomOp(const OpSpec& spec, const OpSignature& signature, KernelFactory factory);

 private:
  ONNXTensorElementDataType type_of(const PortSpec& port) const;

  const OpSpec& spec_;
  const OpSignature& signature_;
  Backend backend_;
  KernelFactory factory_;
};

// Where a kernel runs and what it borrows there: made once a node, used by every call.
class KernelHome {
 public:
  KernelHome() = default;
  ~KernelHome();
  KernelHome(const KernelHome&) = delete;
  KernelHome& operator=(const KernelHome&) = delete;

  // `lends_gemm`: the node's CPU kernels get HostRuntime::gemm.
  Status open(const NodeInfo& node, Backend backend, bool lends_gemm);
  Backend backend() const { return backend_; }
  OrtAllocator* allocator() const { return allocator_; }
  // The device that the first call runs on, and with it all calls: a session stays on one.
  Status device(const DeviceInfo** out) const;

 private:
  const OrtApi* api_ = nullptr;
  Backend backend_ = Backend::cpu;
  OrtAllocator* allocator_ = nullptr;
  mutable std::once_flag asked_;
  mutable DeviceInfo device_;
  mutable Status device_status_;
};

Status make_attention_kernel(const NodeInfo& node, Backend backend, std::unique_ptr<Kernel>* kernel);
Status make_gemm_kernel(const NodeInfo& node, Backend backend, std::unique_ptr<Kernel>* kernel);

}  // namespace fdpp::ort
