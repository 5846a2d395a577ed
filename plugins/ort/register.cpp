// RegisterCustomOps: the entry point that ONNX Runtime calls in a custom-op library, in any language.
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "ort/custom_op.h"

namespace fdpp::ort {
namespace {

// The runtime keeps pointers to ops and domains for as long as its sessions live: they are never destroyed.
std::vector<const CustomOp*> make_ops() {
  std::vector<const CustomOp*> ops;
  const auto add = [&ops](const OpSpec& spec, KernelFactory factory) {
    for (const OpSignature& signature : spec.signatures) {
#if !FDPP_CUDA
      if (std::string(signature.backend) == "cuda") continue;
#endif
      ops.push_back(new CustomOp(spec, signature, factory));
    }
  };
  add(attention_spec(), make_attention_kernel);
  add(gemm_spec(), make_gemm_kernel);
  return ops;
}

Status make_domain(const OrtApi& api, OrtCustomOpDomain** domain) {
  static const std::vector<const CustomOp*> ops = make_ops();
  OrtCustomOpDomain* made = nullptr;
  FDPP_ORT(api, api.CreateCustomOpDomain(kOpDomain, &made));
  for (const CustomOp* op : ops) {
    Status status = from_ort(api, api.CustomOpDomain_Add(made, op));
    if (!status.ok()) {
      api.ReleaseCustomOpDomain(made);
      return status;
    }
  }
  *domain = made;
  return {};
}

Status add_domain(const OrtApi& api, OrtSessionOptions* options) {
  // One domain for each copy of ONNX Runtime in the process.
  static std::mutex mutex;
  static auto* domains = new std::map<const OrtApi*, OrtCustomOpDomain*>;
  std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& domain = (*domains)[&api];
  if (domain == nullptr) FDPP_RETURN_IF_ERROR(make_domain(api, &domain));
  FDPP_ORT(api, api.AddCustomOpDomain(options, domain));
  return {};
}

// An older runtime offers no table of our version, but any table can carry the message.
OrtStatus* too_old(const OrtApiBase* base) {
  for (uint32_t version = kApiVersion - 1; version > 0; --version) {
    if (const OrtApi* api = base->GetApi(version)) {
      const std::string message = std::string("fdpp_ort needs ONNX Runtime 1.") + std::to_string(kApiVersion) +
                                  " or later; this is " + base->GetVersionString();
      return api->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
    }
  }
  return nullptr;
}

}  // namespace
}  // namespace fdpp::ort

extern "C" FDPP_API OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(fdpp::ort::kApiVersion);
  if (api == nullptr) return fdpp::ort::too_old(base);
  return fdpp::ort::guarded(*api, [&] { return fdpp::ort::add_domain(*api, options); });
}
