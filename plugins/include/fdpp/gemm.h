// FdppFlatGemm: Y = act(norm(A) · Bᵀ (+ bias)) (+ residual) for the few rows of A that decoding has; any M works.
//
//   check_gemm()  ->  plan_gemm()  ->  run_gemm(), with the roles of attention.h
//
// Layouts (row-major): A [..., K], flattened to M rows; B of R rows, in the layouts of WeightFormat; bias [R]; residual
// and Y [..., N]; norm_weight and norm_bias [K]. R is N, with silu_mul 2N. Y overlaps no input. All are dense but A, which
// may be a part of a wider tensor: a row's elements are neighbours, and all rows lie one distance apart, K elements or more.
//
// B is a weight: on a GPU it may be read before the stream's preceding kernel has ended, so that kernel must not write it.
//
// next_weight, of B's element type and of one dimension or more, is the weight that a later product reads: a hint that
// kernels may follow, by bringing its beginning into a cache, or ignore. No result depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

// What B holds for its R rows of K values. The K values of a row are contiguous in all formats.
//   f32, f16, bf16   [R, K] of that element type
//   int8             int8 [R, K], value = q · scale, scales T [R]
//   fp8              float8e4m3fn [R, K], value = q · scale, scales T [R] or [1]
//   int4             uint8 [R, blocks · block_size / 2] for blocks = ceil(K / block_size) blocks of a row, value =
//                    (q - zero point) · scale, scales T [R, blocks], zero_points uint8 [R, ceil(blocks / 2)], two a
//                    byte and the low half first, 8 where the input is absent
// Every 8 consecutive int4 values of a row are one little-endian 32-bit word, whose bits 4j to 4j + 3 hold value 2j for
// j < 4 and value 2 (j - 4) + 1 for j >= 4: the pair of values 2j and 2j + 1 is (word >> 4j) & 0x000f000f, one in each
// 16-bit half. What lies beyond K in the last block is arbitrary and reaches no result.
enum class WeightFormat : uint8_t { f32, f16, bf16, int8, fp8, int4 };
inline constexpr std::initializer_list<WeightFormat> kWeightFormats = {
    WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::int8, WeightFormat::fp8, WeightFormat::int4};
FDPP_API const char* weight_format_name(WeightFormat format);
FDPP_API DType weight_dtype(WeightFormat format);  // B's element type

// What becomes of product plus bias, before the residual is added. gelu is the one of erf. silu_mul: B holds N rows of
// gates, then N rows of what they gate, and Y = silu(gate) · up.
enum class Activation : uint8_t { none, relu, gelu, gelu_tanh, silu, silu_mul };
FDPP_API const char* activation_name(Activation activation);

// What A's rows go through first, in float32. rms: x · rsqrt(mean(x²) + norm_epsilon) · norm_weight (+ norm_bias). layer: the
// same of x - mean(x), whose mean square is the variance.
enum class Norm : uint8_t { none, rms, layer };
FDPP_API const char* norm_name(Norm norm);

struct GemmAttributes {
  int64_t n = 0;
  int64_t k = 0;
  std::string weight_format;            // a name of WeightFormat
  int64_t block_size = 0;               // of int4: values of a row that share a scale: 16, 32, 64 or 128
  std::string activation = "none";      // a name of Activation
  std::string norm = "rms";             // rms or layer: a name of Norm; nothing is normalised without norm_weight
  float norm_epsilon = 1e-6f;           // added to a row's mean square or variance where norm_weight is given
  int64_t accuracy_level = 0;           // as MatMulNBits': 4 lets int4 kernels round A to int8, block by block
};

struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t a_row_stride = 0;               // elements from one row of A to the next: K where they are neighbours
  DType dtype = DType::undefined;         // of all but B and zero_points
  WeightFormat weight_format = WeightFormat::f32;
  int64_t block_size = 0;                 // of int4; 0 in other formats
  bool one_scale = false;                 // fp8: all rows share it
  bool has_zero_points = false;
  Activation activation = Activation::none;
  bool has_bias = false;
  bool has_residual = false;
  Norm norm = Norm::none;
  float norm_epsilon = 0;
  int accuracy_level = 0;

  FDPP_API int64_t weight_rows() const;   // of B: R
  FDPP_API int64_t blocks() const;        // of a row of B; 0 in formats other than int4
  bool has_norm() const { return norm != Norm::none; }
  FDPP_API bool rounds_a() const;         // whether kernels may round A to int8
};
FDPP_API std::string describe(const GemmProblem& problem);

FDPP_API Status check_gemm(const GemmAttributes& attributes, const TensorView* inputs, GemmProblem* problem);
// What of check_gemm() needs no inputs; fills what attributes say.
FDPP_API Status check_gemm_attributes(const GemmAttributes& attributes, GemmProblem* problem);

struct GemmVariant;

// How a product is shared out. 0 where a variant has one number only; it may take less than asked for.
struct GemmSplit {
  int pieces = 1;     // of K, worked on side by side: 1 to 64; of the flat GEMM on a GPU: blocks of a cluster
  int rows = 0;       // of B that a block works on at a time: 0 to 1024
  int stages = 0;     // slices of K under way in a block: 0 to 64
  int algorithm = 0;  // of a library's, in the order in which it recommends them: 0 to 15; of the flat GEMM on a GPU: 1 puts
                      // two blocks on a multiprocessor

  bool operator==(const GemmSplit& other) const {
    return pieces == other.pieces && rows == other.rows && stages == other.stages && algorithm == other.algorithm;
  }
};

struct GemmPlan {
  const GemmVariant* variant = nullptr;
  GemmSplit split;
  size_t workspace_bytes = 0;   // in the device's memory, 256-byte aligned, contents arbitrary
  const char* reason = "";      // why this variant; static text
};

// `variant` names the variant to take, an error where it does not take the problem; empty: force_variant(), then the
// tables and the model of costs decide. `split`, if not null, stands in for theirs and for the variant's own choice.
FDPP_API Status plan_gemm(const GemmProblem& problem, const DeviceInfo& device, GemmPlan* plan,
                          const std::string& variant = "", const GemmSplit* split = nullptr);
FDPP_API const char* variant_name(const GemmPlan& plan);
// The splits of `variant` that are worth timing for this problem, its own choice first. A library is asked on the
// current GPU.
FDPP_API Status gemm_splits(const GemmProblem& problem, const DeviceInfo& device, const std::string& variant,
                            std::vector<GemmSplit>* splits);
// The number of rows that a library is asked about in place of `m`, the next of 8, 16, 24, 32, 48, 64, 96, 128 and multiples of
// 128: the algorithms that it recommends, and so the numbers that they have, are the same for all that share it.
FDPP_API int64_t library_rows(int64_t m);
FDPP_API Status run_gemm(const GemmProblem& problem, const GemmPlan& plan, const TensorView* inputs,
                         const TensorView* outputs, void* workspace, const ExecutionContext& context);

}  // namespace fdpp
