// What of a problem the tables and the model of costs look at: the one place that reads it there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "fdpp/attention.h"
#include "fdpp/gemm.h"

namespace fdpp {

// What a product's last step costs: nothing beyond the store, or a tensor more to read.
enum class EpilogueClass : uint8_t { plain, added };
inline const char* epilogue_class_name(EpilogueClass c) { return c == EpilogueClass::plain ? "plain" : "added"; }

struct GemmKey {
  int64_t n = 0;  // rows of B
  int64_t k = 0;
  DType dtype = DType::undefined;
  WeightFormat weight_format = WeightFormat::f32;
  EpilogueClass epilogue = EpilogueClass::plain;
  int accuracy_level = 0;  // where A is rounded by it: other kernels then, or the same ones in another way
  int64_t block_size = 0;  // of int4; 0 in other formats, and in a table's entry for all sizes

  bool same_types(const GemmKey& o) const {
    return dtype == o.dtype && weight_format == o.weight_format && accuracy_level == o.accuracy_level;
  }
  bool operator==(const GemmKey& o) const {
    return n == o.n && k == o.k && same_types(o) && epilogue == o.epilogue && block_size == o.block_size;
  }
};

inline GemmKey key_of(const GemmProblem& p) {
  // Only the CPU's kernels, which alone take float32, round A.
  return {p.weight_rows(),
          p.k,
          p.dtype,
          p.weight_format,
          p.has_bias || p.has_residual ? EpilogueClass::added : EpilogueClass::plain,
          p.rounds_a() && p.dtype == DType::f32 ? p.accuracy_level : 0,
          p.block_size};
}

inline double weight_bytes(const GemmProblem& p) {
  const double weights = static_cast<double>(p.weight_rows()) * static_cast<double>(p.k);
  if (p.weight_format != WeightFormat::int4) return weights * static_cast<double>(dtype_size(weight_dtype(p.weight_format)));
  return weights * (0.5 + static_cast<double>(dtype_size(p.dtype)) / static_cast<double>(p.block_size));
}

// Decoding only: one new token a row.
struct AttentionKey {
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  DType dtype = DType::undefined;
  DType cache_dtype = DType::undefined;

  bool operator==(const AttentionKey& o) const {
    return q_heads == o.q_heads && kv_heads == o.kv_heads && head_size == o.head_size && dtype == o.dtype &&
           cache_dtype == o.cache_dtype;
  }
};

inline AttentionKey key_of(const AttentionProblem& p) {
  return {p.q_heads, p.kv_heads, p.head_size, p.dtype, p.cache_dtype};
}

// Of the fields of both keys.
struct KeyHash {
  size_t operator()(const GemmKey& k) const {
    return mix({k.n, k.k, int64_t(k.dtype), int64_t(k.weight_format), int64_t(k.epilogue), k.accuracy_level, k.block_size});
  }
  size_t operator()(const AttentionKey& k) const {
    return mix({k.q_heads, k.kv_heads, k.head_size, int64_t(k.dtype), int64_t(k.cache_dtype)});
  }

 private:
  static size_t mix(std::initializer_list<int64_t> fields) {
    uint64_t hash = 0;
    for (int64_t field : fields) {
      // Multiplication moves entropy up, the shift brings it back down to the bits that buckets are picked by.
      hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 32;
    }
    return static_cast<size_t>(hash);
  }
};

}  // namespace fdpp
