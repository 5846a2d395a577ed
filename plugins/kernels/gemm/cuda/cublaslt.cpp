// Large M through NVIDIA's cuBLASLt. Row-major Y = A · Bᵀ is column-major Yᵀ = B · Aᵀ, so the library's first matrix is
// B, and a bias along N lies along the rows of its result, where its bias epilogue wants it. With an activation it
// computes bare sums, and finish() the rest.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "kernels/gemm/cuda/cublaslt_library.h"
#include "kernels/gemm/cuda/dequantise.h"
#include "kernels/gemm/cuda/finish.h"
#include "kernels/gemm/cuda/normalise.h"
#include "kernels/gemm/cuda/supports.h"
#include "kernels/gemm/variant.h"

namespace fdpp {
namespace {

using cublaslt::Library;

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what the library's fastest Hopper kernels may ask for
constexpr size_t kMostDequantised = size_t{1} << 30;
constexpr size_t kMaxAlgorithms = 4096;               // remembered ones; prompts come in many lengths
constexpr int kMostAlgorithms = 16;                   // asked for at once, as many as a split can name

Status check(const Library& lt, int status, const char* what) {
  if (status == cublaslt::kSuccess) return {};
  return device_error(std::string(what) + " failed: " + lt.status_text(status));
}

#define FDPP_LT(call) FDPP_RETURN_IF_ERROR(check(lt, (call), #call))

template <typename Object>
using Owned = std::unique_ptr<std::remove_pointer_t<Object>, int (*)(Object)>;

// The largest power of two up to 256 at which every non-null one of these starts.
uint32_t alignment(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 256;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return static_cast<uint32_t>(bits & (~bits + 1));
}

struct Alignments {
  uint32_t a, b, c, d;
};

// What the library computes: a product without an activation, of type `result`.
struct Product {
  GemmParams params;
  cudaDataType_t result;
};

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

// Of all rows of A, with bias and residual; or of `rows` from `first` on, the sums alone.
Product whole(const GemmParams& params) { return {params, type_of(params.problem.dtype)}; }
Product sums_of(const GemmParams& params, void* sums, int64_t first, int64_t rows) {
  Product product{params, type_of(finish_type(params.problem))};
  GemmProblem& p = product.params.problem;
  const int64_t row_bytes = p.a_row_stride * static_cast<int64_t>(dtype_size(p.dtype));
  product.params.a = static_cast<const char*>(params.a) + first * row_bytes;
  product.params.bias = product.params.residual = nullptr;
  product.params.y = sums;
  p.m = rows, p.n = p.weight_rows();
  p.activation = Activation::none, p.has_bias = p.has_residual = false;
  return product;
}

Alignments alignments(const GemmParams& p) {
  // The library has no alignment of its own for the bias: D's stands for it.
  return {alignment({p.b}), alignment({p.a}), alignment({p.residual != nullptr ? p.residual : p.y}),
          alignment({p.y, p.bias})};
}

// Everything that a choice of algorithm depends on.
using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t, DType, cudaDataType_t, bool, bool, uint32_t, uint32_t,
                       uint32_t, uint32_t, int>;

// What one product is, in the library's objects. They are host memory only and cheap next to a launch.
struct Call {
  Owned<cublaslt::Operation> operation;
  Owned<cublaslt::Layout> a, b, y;
};

Call empty_call(const Library& lt) {
  return {{nullptr, lt.operation_destroy}, {nullptr, lt.layout_destroy}, {nullptr, lt.layout_destroy},
          {nullptr, lt.layout_destroy}};
}

// `m`: the rows of A, the problem's or others.
Status describe_call(const Library& lt, const Product& product, int64_t m, Call* call) {
  const GemmParams& params = product.params;
  const GemmProblem& p = params.problem;
  const cudaDataType_t type = type_of(p.dtype);
  const auto layout = [&](cudaDataType_t of, int64_t rows, int64_t columns, int64_t stride,
                          Owned<cublaslt::Layout>* out) -> Status {
    cublaslt::Layout raw = nullptr;
    FDPP_LT(lt.layout_create(&raw, of, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), stride));
    out->reset(raw);
    return {};
  };
  FDPP_RETURN_IF_ERROR(layout(type, p.k, p.n, p.k, &call->a));
  FDPP_RETURN_IF_ERROR(layout(type, p.k, m, p.a_row_stride, &call->b));
  FDPP_RETURN_IF_ERROR(layout(product.result, p.n, m, p.n, &call->y));

  cublaslt::Operation operation = nullptr;
  FDPP_LT(lt.operation_create(&operation, cublaslt::kComputeF32, CUDA_R_32F));
  call->operation.reset(operation);
  FDPP_LT(lt.operation_set(operation, cublaslt::kTransposeA, &cublaslt::kTranspose, sizeof cublaslt::kTranspose));
  if (params.bias != nullptr) {
    FDPP_LT(lt.operation_set(operation, cublaslt::kEpilogue, &cublaslt::kEpilogueBias, sizeof cublaslt::kEpilogueBias));
    FDPP_LT(lt.operation_set(operation, cublaslt::kBiasPointer, &params.bias, sizeof params.bias));
  }
  return {};
}

// Up to `most` algorithms for a call with `m` rows of A, at least one, in the order in which the library recommends them.
Status ask_heuristic(const Library& lt, cublaslt::Handle handle, const Product& product, int64_t m,
                     const Alignments& align, int most, std::vector<cublaslt::Algorithm>* algorithms) {
  Call call = empty_call(lt);
  FDPP_RETURN_IF_ERROR(describe_call(lt, product, m, &call));
  cublaslt::Preference raw = nullptr;
  FDPP_LT(lt.preference_create(&raw));
  const Owned<cublaslt::Preference> preference(raw, lt.preference_destroy);
  const uint64_t workspace = kWorkspaceBytes;
  FDPP_LT(lt.preference_set(raw, cublaslt::kMaxWorkspace, &workspace, sizeof workspace));
  // Parts of a split K are added in float32, or the sum would be rounded more than once.
  FDPP_LT(lt.preference_set(raw, cublaslt::kReductionMask, &cublaslt::kReduceInComputeType,
                            sizeof cublaslt::kReduceInComputeType));
  for (auto [attribute, value] :
       {std::pair{cublaslt::kAlignmentA, align.a}, std::pair{cublaslt::kAlignmentB, align.b},
        std::pair{cublaslt::kAlignmentC, align.c}, std::pair{cublaslt::kAlignmentD, align.d}})
    FDPP_LT(lt.preference_set(raw, attribute, &value, sizeof value));

  cublaslt::Candidate found[kMostAlgorithms] = {};
  int count = 0;
  const int status = lt.heuristic(handle, call.operation.get(), call.a.get(), call.b.get(), call.y.get(), call.y.get(),
                                  raw, most, found, &count);
  if (status == cublaslt::kSuccess)
    for (int i = 0; i < count && found[i].status == cublaslt::kSuccess; ++i)
      algorithms->push_back(found[i].algorithm);
  if (!algorithms->empty()) return {};
  return not_supported("FdppFlatGemm: cuBLASLt has no algorithm for " + describe(product.params.problem) + ": " +
                       lt.status_text(status != cublaslt::kSuccess ? status : found[0].status));
}

// Handles by GPU and algorithms by problem. Lives until the process ends: the GPU's runtime may be gone before
// destructors of static objects run.
struct Cache {
  std::mutex mutex;
  std::map<int, cublaslt::Handle> handles;
  std::map<Key, cublaslt::Algorithm> algorithms;
};

Cache& cache() {
  static Cache* const instance = new Cache;
  return *instance;
}

Status handle_of(const Library& lt, Cache& known, int device, cublaslt::Handle* handle) {
  cublaslt::Handle& of_device = known.handles[device];
  if (of_device == nullptr) FDPP_LT(lt.create(&of_device));
  *handle = of_device;
  return {};
}

Status prepare(const Library& lt, const Product& product, const Call& call, int wanted, cublaslt::Handle* handle,
               cublaslt::Algorithm* algorithm) {
  int device = 0;
  FDPP_GPU(cudaGetDevice(&device));
  const GemmParams& params = product.params;
  const GemmProblem& p = params.problem;
  const Alignments align = alignments(params);
  const Key key(device, p.m, p.n, p.k, p.a_row_stride, p.dtype, product.result, params.bias != nullptr,
                params.residual != nullptr, align.a, align.b, align.c, align.d, wanted);

  Cache& known = cache();
  const std::lock_guard<std::mutex> lock(known.mutex);
  FDPP_RETURN_IF_ERROR(handle_of(lt, known, device, handle));
  if (const auto it = known.algorithms.find(key); it != known.algorithms.end()) {
    *algorithm = it->second;
    return {};
  }
  std::vector<cublaslt::Algorithm> found;
  FDPP_RETURN_IF_ERROR(ask_heuristic(lt, *handle, product, library_rows(p.m), align, wanted + 1, &found));
  // Another version of the library than the one that was tuned may know fewer.
  *algorithm = found[static_cast<size_t>(wanted) < found.size() ? wanted : 0];
  cublaslt::Candidate checked{};
  if (lt.check(*handle, call.operation.get(), call.a.get(), call.b.get(), call.y.get(), call.y.get(), algorithm,
               &checked) != cublaslt::kSuccess || checked.workspace_bytes > kWorkspaceBytes) {
    found.clear();
    FDPP_RETURN_IF_ERROR(ask_heuristic(lt, *handle, product, p.m, align, 1, &found));
    *algorithm = found[0];
  }
  if (known.algorithms.size() >= kMaxAlgorithms) known.algorithms.clear();
  known.algorithms.emplace(key, *algorithm);
  return {};
}

bool supports(const GemmProblem& problem, const DeviceInfo& device, std::string* why) {
  if (!supports_half_gemm(problem, device, why)) return false;
  if (dequantise_bytes(problem) > kMostDequantised) {
    *why = "its weights take more than " + std::to_string(kMostDequantised >> 20) + " MiB when they are not quantised";
    return false;
  }
  if (problem.n % 8 != 0 || problem.k % 8 != 0 || product_row_stride(problem) % 8 != 0) {
    // cuBLASLt's kernels for such rows round the product before they add bias and residual.
    *why = "takes N, K and distances of A's rows that are multiples of 8";
    return false;
  }
  // Beyond that cuBLASLt's kernels read where nothing is (CUDA 13, H200).
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (product_row_stride(problem) > (kMost - problem.k) / std::max<int64_t>(problem.m - 1, 1)) {
    *why = "takes an A that spans less than 2^31 elements";
    return false;
  }
  return cublaslt::library(why) != nullptr;
}

// cuBLASLt splits K as it likes.
GemmSplit split(const GemmProblem&, const DeviceInfo&) { return {}; }

size_t workspace_bytes(const GemmProblem& problem, const GemmSplit&) {
  const size_t sums = problem.activation == Activation::none ? 0 : finish_bytes(problem);
  return normalise_bytes(problem) + dequantise_bytes(problem) + sums + kWorkspaceBytes;
}

Status count_algorithms(const Library& lt, const GemmProblem& problem, int ordinal, int* count) {
  int device = 0;
  FDPP_GPU(cudaGetDevice(&device));
  if (device != ordinal) return device_error("the library answers for the current GPU alone");
  // The library looks at addresses alone: any that is aligned as tensors are stands for all of them.
  alignas(256) static char aligned[1];
  GemmParams params;
  params.problem = problem;
  params.a = params.b = params.y = aligned;
  if (problem.has_bias) params.bias = aligned;
  if (problem.has_residual) params.residual = aligned;
  Cache& known = cache();
  const std::lock_guard<std::mutex> lock(known.mutex);
  cublaslt::Handle handle = nullptr;
  FDPP_RETURN_IF_ERROR(handle_of(lt, known, device, &handle));
  std::vector<cublaslt::Algorithm> found;
  FDPP_RETURN_IF_ERROR(
      ask_heuristic(lt, handle, whole(params), library_rows(problem.m), alignments(params), kMostAlgorithms, &found));
  *count = static_cast<int>(found.size());
  return {};
}

void splits(const GemmProblem& problem, const DeviceInfo& device, std::vector<GemmSplit>* out) {
  if (problem.activation != Activation::none) return;  // run() leaves those to the library
  std::string why;
  const Library* lt = cublaslt::library(&why);
  int count = 0;
  // Where that GPU cannot be asked, the library's first choice is all there is.
  if (lt == nullptr || !count_algorithms(*lt, problem, device.ordinal, &count).ok()) return;
  for (int i = 0; i < count; ++i) {
    GemmSplit s;
    s.algorithm = i;
    out->push_back(s);
  }
}

Status multiply(const Library& lt, const Product& product, int wanted, void* workspace, cudaStream_t stream) {
  const GemmParams& params = product.params;
  Call call = empty_call(lt);
  FDPP_RETURN_IF_ERROR(describe_call(lt, product, params.problem.m, &call));
  cublaslt::Handle handle = nullptr;
  cublaslt::Algorithm algorithm;
  FDPP_RETURN_IF_ERROR(prepare(lt, product, call, wanted, &handle, &algorithm));

  const float alpha = 1;
  const float beta = params.residual != nullptr ? 1 : 0;
  const void* c = params.residual != nullptr ? params.residual : params.y;
  FDPP_LT(lt.matmul(handle, call.operation.get(), &alpha, params.b, call.a.get(), params.a, call.b.get(), &beta, c,
                    call.y.get(), params.y, call.y.get(), &algorithm, workspace, kWorkspaceBytes, stream));
  return {};
}

Status run(const GemmParams& given, const GemmSplit& split, void* workspace, const ExecutionContext& context) {
  std::string why;
  const Library* loaded = cublaslt::library(&why);
  if (loaded == nullptr) return not_supported("FdppFlatGemm: " + why);
  const Library& lt = *loaded;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  GemmParams normalised, params;
  FDPP_RETURN_IF_ERROR(normalise(given, &workspace, stream, &normalised));
  FDPP_RETURN_IF_ERROR(dequantise(normalised, &workspace, stream, &params));

  const GemmProblem& p = params.problem;
  if (p.activation == Activation::none) return multiply(lt, whole(params), split.algorithm, workspace, stream);
  // A table's number is for another product than this one's: of T, and with bias or residual.
  void* const sums = workspace;
  workspace = static_cast<char*>(workspace) + finish_bytes(p);
  const int64_t rows_at_once = finish_rows(p);
  for (int64_t first = 0; first < p.m; first += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, p.m - first);
    FDPP_RETURN_IF_ERROR(multiply(lt, sums_of(params, sums, first, rows), 0, workspace, stream));
    FDPP_RETURN_IF_ERROR(finish(params, sums, first, rows, stream));
  }
  return {};
}

}  // namespace

extern const GemmVariant kCublasLt;
const GemmVariant kCublasLt = {"cublaslt",
                               Backend::cuda,
                               GemmKind::large,
                               "any M through NVIDIA's cuBLASLt, loaded at run time; N and K multiples of 8",
                               supports,
                               split,
                               workspace_bytes,
                               run,
                               splits};

}  // namespace fdpp
