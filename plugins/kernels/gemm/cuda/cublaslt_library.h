// cuBLASLt as this project uses it: its C interface restated, so that neither its header nor the library is needed to
// build, and looked up in whichever copy the process has or finds at run time.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "kernels/common/gpu.h"

namespace fdpp::cublaslt {

// Opaque objects of the library.
using Handle = struct HandleObject*;
using Operation = struct OperationObject*;
using Layout = struct LayoutObject*;
using Preference = struct PreferenceObject*;

// Constants of the library's interface, stable over its major versions 11 to 13.
constexpr int kSuccess = 0;
constexpr int kComputeF32 = 68;
constexpr int32_t kTranspose = 1;
constexpr uint32_t kEpilogueBias = 4;
constexpr uint32_t kReduceInComputeType = 2;
enum OperationAttribute : int { kTransposeA = 3, kEpilogue = 7, kBiasPointer = 8 };
enum PreferenceAttribute : int {
  kMaxWorkspace = 1,
  kReductionMask = 3,
  kAlignmentA = 5,
  kAlignmentB = 6,
  kAlignmentC = 7,
  kAlignmentD = 8
};

struct Algorithm {
  uint64_t data[8];
};
struct Candidate {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

struct Library {
  int (*create)(Handle*);
  int (*operation_create)(Operation*, int compute, cudaDataType_t scale);
  int (*operation_destroy)(Operation);
  int (*operation_set)(Operation, int attribute, const void* value, size_t bytes);
  int (*layout_create)(Layout*, cudaDataType_t type, uint64_t rows, uint64_t columns, int64_t leading_dimension);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(Handle, Operation, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Candidate* found,
                   int* count);
  int (*check)(Handle, Operation, Layout a, Layout b, Layout c, Layout d, const Algorithm*, Candidate* result);
  int (*matmul)(Handle, Operation, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t workspace_bytes,
                cudaStream_t);
  const char* (*status_text)(int);
};

struct Loaded {
  Library functions = {};
  std::string error;  // empty: all functions are there
};

// The error says what is missing.
inline Loaded functions_of(void* handle) {
  Loaded loaded;
  const auto find = [&](auto* function, const char* symbol) {
    *function = reinterpret_cast<std::decay_t<decltype(*function)>>(dlsym(handle, symbol));
    if (*function == nullptr) loaded.error = std::string("libcublasLt has no ") + symbol + ", it is too old";
  };
  Library& f = loaded.functions;
  find(&f.create, "cublasLtCreate");
  find(&f.operation_create, "cublasLtMatmulDescCreate");
  find(&f.operation_destroy, "cublasLtMatmulDescDestroy");
  find(&f.operation_set, "cublasLtMatmulDescSetAttribute");
  find(&f.layout_create, "cublasLtMatrixLayoutCreate");
  find(&f.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(&f.preference_create, "cublasLtMatmulPreferenceCreate");
  find(&f.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(&f.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(&f.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(&f.check, "cublasLtMatmulAlgoCheck");
  find(&f.matmul, "cublasLtMatmul");
  find(&f.status_text, "cublasLtGetStatusString");
  return loaded;
}

inline Loaded load() {
  constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11", "libcublasLt.so"};
  Loaded loaded;
  // A copy that the process has loaded already comes first: two at once cost memory for nothing. One that lacks a function
  // makes way for the next.
  for (int mode : {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
    for (const char* name : kNames) {
      void* const handle = dlopen(name, mode);
      if (handle == nullptr) continue;
      loaded = functions_of(handle);
      if (loaded.error.empty()) return loaded;
      dlclose(handle);
    }
  }
  if (!loaded.error.empty()) return loaded;
  loaded.error = "none of libcublasLt.so.13, .12, .11 and libcublasLt.so could be loaded";
  if (const char* last = dlerror()) loaded.error += std::string(" (") + last + ")";
  return loaded;
}

// Null, with the reason in `why`, where the library cannot be loaded. Loaded once a process, never unloaded.
inline const Library* library(std::string* why) {
  static const Loaded loaded = load();
  if (loaded.error.empty()) return &loaded.functions;
  *why = loaded.error;
  return nullptr;
}

}  // namespace fdpp::cublaslt
