// The GEMM kernels, compiled once for each instruction set. The files that are compiled with its flags hold nothing
// else: no inline function of theirs may reach a processor that lacks the instructions.
#pragma once

#include "fdpp/device.h"
#include "kernels/gemm/params.h"

namespace fdpp {

struct Int8;

constexpr int64_t kGemvRows = 4;  // rows of A that gemv takes

// What the kernels keep in the workspace; each part is there if the problem asks for it.
struct GemmScratch {
  float* a = nullptr;   // [M, K]: A after the norm
  float* up = nullptr;  // [M, N]: what silu_mul gates

  // A as integers, each row padded with zeros to whole vectors of words (`padded` values). A vector's part holds first
  // the integers that meet the low halves of its words' bytes, then the others.
  Int8* integers = nullptr;     // [M, padded]
  float* word_scales = nullptr; // [M, padded / 8]: what an integer is worth, for every word of B
  float* block_sums = nullptr;  // [M, padded_blocks]: minus the sum of a block of the rounded A
  int64_t padded = 0;
  int64_t padded_blocks = 0;

  size_t bytes = 0;  // of all
};
GemmScratch gemm_scratch(const GemmProblem& problem, void* workspace);

using GemmKernel = void(const GemmParams& params, const GemmScratch& scratch, const HostRuntime* host);
GemmKernel gemv_avx2, gemv_avx2_vnni, gemv_avx512, gemv_avx512_vnni;
GemmKernel flat_scalar, flat_avx2, flat_avx2_vnni, flat_avx512, flat_avx512_vnni;

// What is left to do around somebody else's float32 product.
struct GemmSteps {
  // to[M, K] = A after the norm.
  void (*normalise)(const GemmParams& params, float* to, const HostRuntime* host);
  // to[rows, K] = rows of B from `first` on in float32.
  void (*dequantise)(const GemmParams& params, int64_t first, int64_t rows, float* to, const HostRuntime* host);
  // Columns [first, first + columns) of Y, of products that lie there or `stride` apart elsewhere; `up` is silu_mul's.
  void (*finish)(const GemmParams& params, int64_t first, int64_t columns, const float* product, const float* up,
                 int64_t stride, const HostRuntime* host);
};
extern const GemmSteps kScalarSteps, kAvx2Steps, kAvx512Steps;

}  // namespace fdpp
