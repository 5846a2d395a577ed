// What CPU kernels borrow from ONNX Runtime: its thread pool and its matrix product.
#pragma once

#include "fdpp/device.h"
#include "ort/api.h"

namespace fdpp::ort {

// The runtime's own Gemm, created for one node.
class RuntimeGemm {
 public:
  RuntimeGemm() = default;
  ~RuntimeGemm();
  RuntimeGemm(const RuntimeGemm&) = delete;
  RuntimeGemm& operator=(const RuntimeGemm&) = delete;

  Status create(const NodeInfo& node);
  // C[M, N] = A[M, K] · B[N, K]ᵀ
  Status run(const CallContext& context, int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c) const;

 private:
  const OrtApi* api_ = nullptr;
  OrtOp* op_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
};

// HostRuntime of one call; lives as long as the call. `gemm` may be null.
class CallHost {
 public:
  CallHost(const CallContext& context, const RuntimeGemm* gemm);
  const HostRuntime* get() const { return &runtime_; }

 private:
  const CallContext& context_;
  const RuntimeGemm* gemm_;
  HostRuntime runtime_;
};

}  // namespace fdpp::ort
