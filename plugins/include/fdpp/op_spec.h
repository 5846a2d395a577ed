// The ops' signatures, stated once: adapters register from this table, the exporter's mirror is tested against it.
#pragma once

#include <vector>

#include "fdpp/status.h"

namespace fdpp {

inline constexpr const char* kOpDomain = "fdpp";
inline constexpr int kOpVersion = 1;

// FdppAttention takes its inputs in the order of com.microsoft::GroupQueryAttention; phi is our own.
enum AttentionInput : int {
  kAttnQuery,
  kAttnKey,
  kAttnValue,
  kAttnPastKey,
  kAttnPastValue,
  kAttnSeqlensK,
  kAttnTotalSequenceLength,
  kAttnCosCache,
  kAttnSinCache,
  kAttnPositionIds,
  kAttnAttentionBias,
  kAttnHeadSink,
  kAttnKScale,
  kAttnVScale,
  kAttnQNorm,
  kAttnKNorm,
  kAttnPhi,
  kAttnInputCount
};
enum AttentionOutput : int { kAttnOutput, kAttnPresentKey, kAttnPresentValue, kAttnOutputCount };

enum GemmInput : int {
  kGemmA,
  kGemmB,
  kGemmScales,
  kGemmZeroPoints,
  kGemmBias,
  kGemmResidual,
  kGemmNormWeight,
  kGemmNextWeight,
  kGemmNormBias,
  kGemmInputCount
};
enum GemmOutput : int { kGemmY, kGemmOutputCount };

enum GreedyInput : int { kGreedyLogits, kGreedyPositions, kGreedyMask, kGreedyInputCount };
enum GreedyOutput : int {
  kGreedyTokens,
  kGreedyNextPositions,
  kGreedyNextMask,
  kGreedyHostTokens,
  kGreedyOutputCount
};

struct PortSpec {
  const char* name;
  const char* type;   // a type variable that the op's signatures bind ("T", "C", "W"), or a fixed type ("int32")
  bool optional;
  bool host_memory;   // lies in host memory also when the op runs on a GPU
};

enum class AttributeKind { integer, real, text };
struct AttributeSpec {
  const char* name;
  AttributeKind kind;
  const char* default_value;  // as text; nullptr: required
  const char* meaning;
};

// One combination of element types that a backend's kernels take, e.g. {"cuda", {{"T", "float16"}, {"C", "float16"}}}.
struct TypeBinding {
  const char* variable;
  const char* type;
};
struct OpSignature {
  const char* backend;
  std::vector<TypeBinding> types;
};

// Output `output` may share the buffer of input `input`.
struct InPlace {
  int input;
  int output;
};

struct OpSpec {
  const char* name;
  std::vector<PortSpec> inputs;
  std::vector<PortSpec> outputs;
  std::vector<AttributeSpec> attributes;
  std::vector<OpSignature> signatures;
  std::vector<InPlace> in_place;
};

FDPP_API const OpSpec& attention_spec();
FDPP_API const OpSpec& gemm_spec();
FDPP_API const OpSpec& greedy_step_spec();

}  // namespace fdpp
