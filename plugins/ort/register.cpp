// RegisterCustomOps: the entry point that ONNX Runtime calls in a custom-op library, in any language.
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "ort/custom_op.h"
#include "ort/dense_op.h"

namespace fdpp::ort {
namespace {

#if FDPP_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

// The runtime keeps pointers to ops and domains for as long as its sessions live: they are never destroyed.
using Ops = std::vector<const OrtCustomOp*>;

constexpr struct {
  const OpSpec& (*spec)();
  KernelFactory factory;
  bool has_dense_form;
} kOps[] = {{attention_spec, make_attention_kernel, true},
            {gemm_spec, make_gemm_kernel, true},
            {greedy_step_spec, make_greedy_kernel, false}};

Ops plain_ops() {
  Ops ops;
  for (const auto& op : kOps) {
    for (const OpSignature& signature : op.spec().signatures) {
      if (!kWithCuda && backend_of(signature) == Backend::cuda) continue;
      ops.push_back(new CustomOp(op.spec(), signature, op.factory));
    }
  }
  return ops;
}

Ops dense_ops(const OrtApi& api) {
  Ops ops;
  for (const auto& op : kOps) {
    if (!op.has_dense_form) continue;
    ops.push_back(new DenseOp(api, op.spec(), Backend::cpu, op.factory));
    if (kWithCuda) ops.push_back(new DenseOp(api, op.spec(), Backend::cuda, op.factory));
  }
  return ops;
}

Status make_domain(const OrtApi& api, const char* name, const Ops& ops, OrtCustomOpDomain** domain) {
  OrtCustomOpDomain* made = nullptr;
  FDPP_ORT(api, api.CreateCustomOpDomain(name, &made));
  for (const OrtCustomOp* op : ops) {
    Status status = from_ort(api, api.CustomOpDomain_Add(made, op));
    if (!status.ok()) {
      api.ReleaseCustomOpDomain(made);
      return status;
    }
  }
  *domain = made;
  return {};
}

struct Domains {
  OrtCustomOpDomain* plain = nullptr;
  OrtCustomOpDomain* dense = nullptr;
};

Status add_domains(const OrtApi& api, OrtSessionOptions* options) {
  // Domains of their own for each copy of ONNX Runtime in the process.
  static std::mutex mutex;
  static auto* all = new std::map<const OrtApi*, Domains>;
  std::lock_guard<std::mutex> lock(mutex);
  Domains& domains = (*all)[&api];
  if (domains.plain == nullptr) FDPP_RETURN_IF_ERROR(make_domain(api, kOpDomain, plain_ops(), &domains.plain));
  if (domains.dense == nullptr) FDPP_RETURN_IF_ERROR(make_domain(api, kDenseDomain, dense_ops(api), &domains.dense));
  for (OrtCustomOpDomain* domain : {domains.plain, domains.dense}) FDPP_ORT(api, api.AddCustomOpDomain(options, domain));
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
  return fdpp::ort::guarded(*api, [&] { return fdpp::ort::add_domains(*api, options); });
}
