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

// How a node gives the op's inputs: each in its place, or as fdpp/dense.h says.
enum class Form { plain, dense };

using KernelFactory = Status (*)(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel);

// One op on one backend in one form: its name, its version and its kernels. What its inputs and outputs are is for the
// derived classes to say.
class OpBase : public OrtCustomOp {
 protected:
  OpBase(const OpSpec& spec, Backend backend, Form form, KernelFactory factory);

  const OpSpec& spec_;

 private:
  Backend backend_;
  Form form_;
  KernelFactory factory_;
};

// The plain form, with one combination of element types.
class CustomOp : public OpBase {
 public:
  CustomOp(const OpSpec& spec, const OpSignature& signature, KernelFactory factory);

 private:
  ONNXTensorElementDataType type_of(const PortSpec& port) const;

  const OpSignature& signature_;
};

Backend backend_of(const OpSignature& signature);

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

Status make_attention_kernel(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel);
Status make_gemm_kernel(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel);
Status make_greedy_kernel(const NodeInfo& node, Backend backend, Form form, std::unique_ptr<Kernel>* kernel);

}  // namespace fdpp::ort
