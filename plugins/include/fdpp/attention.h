// FdppAttention: head norm, rotary embedding, append to the KV cache and causal grouped-query attention in one op.
//
//   check_attention()  the user's tensors  -> AttentionProblem   (host; every error names its tensor)
//   plan_attention()   problem and device  -> AttentionPlan      (host; picks the kernel variant)
//   run_attention()    plan and tensors    -> launches           (never allocates, synchronises or throws)
//
// Layouts (row-major): query [B, S, Hq * D], or packed [B, S, (Hq + 2 * Hkv) * D] with key and value absent; key and
// value [B, S, Hkv * D]; past and present [B, Hkv, L, D], the capacity L being present's second-last dimension; seqlens_k
// int32 [B], the total length of each row minus 1; total_sequence_length int32 scalar in host memory; cos_cache and
// sin_cache [positions, rotary_dim / 2]; position_ids int64 [B, S]; attention_bias [B or 1, Hq or 1, S,
// total_sequence_length]; head_sink [Hq]; k_scale and v_scale float32, one element or [1, Hkv, 1, D]; q_norm and k_norm
// [D]; phi float32 [Hq]; output [B, S, Hq * D].
//
// Order of work: query and key heads are divided by their root mean square and multiplied by q_norm or k_norm; the first
// rotary_dim columns are rotated by the angle of position_ids, where absent of the token's place in the cache; keys and
// values are stored in the cache's type, an 8-bit one as round(x / scale), saturated; score = scale * query · key, then
// softcap, then + attention_bias, then mask, then softmax.
//
// Row b holds n_b = seqlens_k[b] + 1 tokens once the S new ones are appended. Where S equals total_sequence_length this is
// a prompt: the new tokens take positions 0..S-1, and those at n_b and beyond are right padding, whose output is 0.
// Otherwise they take positions n_b - S .. n_b - 1. A token at position p attends to positions 0..p, with
// local_window_size w >= 0 only to the last w of them (its own included). Left padding is what position_ids and an
// attention_bias of -inf say. A row that may attend to nothing has output 0.
//
// Softmax modes (FlashDecoding++, section 3) differ in what weights are measured against, never in the result beyond
// rounding: weights are e^(score - reference), and the reference cancels.
//   unified: the head's phi, as long as the first scores that a row sees lie within (phi + phi_lower, phi + phi_upper) and
//            none exceeds the upper bound later; a row that leaves the interval goes on, in the same launch, with its exact
//            maximum as lazy does, and is counted. Partial sums with one reference compose by plain addition.
//   lazy:    the running maximum, moved only when scores exceed it by more than a threshold.
//   online:  the running maximum, moved with every block of keys that has a larger one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

enum class SoftmaxMode : uint8_t { lazy, online, unified };
FDPP_API const char* softmax_mode_name(SoftmaxMode mode);
FDPP_API Status parse_softmax_mode(const std::string& text, SoftmaxMode* out);

// Scales of an 8-bit cache, as com.microsoft::GroupQueryAttention names them: one, or one for each KV head and column.
enum class CacheQuantization : uint8_t { none, per_tensor, per_channel };
FDPP_API const char* cache_quantization_name(CacheQuantization quantization);  // "NONE", "PER_TENSOR", "PER_CHANNEL"
FDPP_API Status parse_cache_quantization(const char* attribute, const std::string& text, CacheQuantization* out);

struct AttentionAttributes {
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;
  float scale = 0;                     // 0: 1 / sqrt(D)
  float softcap = 0;                   // > 0: scores become softcap * tanh(score / softcap)
  int64_t local_window_size = -1;      // -1: no window
  bool do_rotary = false;
  bool rotary_interleaved = false;     // pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2)
  int64_t rotary_embedding_dim = 0;    // 0: as wide as the caches say
  SoftmaxMode softmax_mode = SoftmaxMode::lazy;
  float phi_lower = -8;                // unified: the interval around phi, in the scores' unit
  float phi_upper = 8;
  float qk_norm_epsilon = 1e-6f;       // added to the mean square
  CacheQuantization k_quant_type = CacheQuantization::none;
  CacheQuantization v_quant_type = CacheQuantization::none;
};

// Everything that selection and kernels need to know apart from addresses.
struct AttentionProblem {
  int64_t batch = 0;               // B
  int64_t query_length = 0;        // S, new tokens per row
  int64_t q_heads = 0;             // Hq
  int64_t kv_heads = 0;            // Hkv, divides Hq
  int64_t head_size = 0;           // D, a multiple of 8 in 8..256
  int64_t past_capacity = 0;       // second-last dimension of past; 0 where there is none
  int64_t capacity = 0;            // L of present: max(past_capacity, total_length)
  int64_t total_length = 0;        // the longest row's length after the append, or an upper bound of it
  DType dtype = DType::undefined;        // of query, key, value, rotary caches, sink and output
  DType cache_dtype = DType::undefined;  // of past and present; i8 and f8e4m3 come with scales
  CacheQuantization key_quantization = CacheQuantization::none;
  CacheQuantization value_quantization = CacheQuantization::none;
  bool packed_qkv = false;
  bool prompt = false;             // S == total_length: positions start at 0, rows may be right-padded
  int64_t rotary_dim = 0;          // 0: no rotary embedding
  bool rotary_interleaved = false;
  int64_t rotary_positions = 0;    // rows of cos_cache
  bool has_position_ids = false;   // and a rotary embedding that reads them
  bool has_norm = false;           // q_norm and k_norm
  float norm_epsilon = 0;
  int64_t bias_batch = 0;          // dimensions 0 and 1 of attention_bias: B or 1, Hq or 1; 0: no bias
  int64_t bias_heads = 0;
  bool has_sink = false;
  float scale = 0;
  float softcap = 0;
  int64_t window = -1;
  SoftmaxMode softmax_mode = SoftmaxMode::lazy;
  float phi_lower = 0;             // unified alone
  float phi_upper = 0;

  int64_t group() const { return q_heads / kv_heads; }
  bool has_bias() const { return bias_batch != 0; }
  bool quantized() const { return cache_dtype == DType::i8 || cache_dtype == DType::f8e4m3; }
};
FDPP_API std::string describe(const AttentionProblem& problem);

// Checks shapes, types and attributes of `inputs` (AttentionInput order) and fills `problem`. Values are read of
// total_sequence_length alone. The dimensions of present follow: [B, Hkv, problem->capacity, D].
FDPP_API Status check_attention(const AttentionAttributes& attributes, const TensorView* inputs,
                                AttentionProblem* problem);

// Checks the values of seqlens_k where the host can read them (the CPU backend calls it before it plans).
FDPP_API Status check_seqlens(const AttentionProblem& problem, const int32_t* seqlens_k);
// The same for position_ids; ok where the problem has none.
FDPP_API Status check_position_ids(const AttentionProblem& problem, const int64_t* position_ids);

struct AttentionVariant;

// How a call's work is shared out; which fields count is the variant's.
struct AttentionSplit {
  int pieces = 1;                     // of a KV head's context, worked on side by side
  int cluster = 1;                    // blocks that share a piece: 1, 2, 4 or 8
  int blocks_per_multiprocessor = 1;  // at most

  bool operator==(const AttentionSplit& other) const {
    return pieces == other.pieces && cluster == other.cluster &&
           blocks_per_multiprocessor == other.blocks_per_multiprocessor;
  }
};

struct AttentionPlan {
  const AttentionVariant* variant = nullptr;
  AttentionSplit split;
  size_t workspace_bytes = 0;   // in the device's memory, 256-byte aligned, contents arbitrary
  const char* reason = "";      // why this variant; static text

  int num_splits() const { return split.pieces * split.cluster; }
};

// `variant` names the variant to take, an error where it does not take the problem; empty: force_variant(), then the
// dispatch table decide. `split` stands in for the variant's own choice; null: that choice.
FDPP_API Status plan_attention(const AttentionProblem& problem, const DeviceInfo& device, AttentionPlan* plan,
                               const std::string& variant = "", const AttentionSplit* split = nullptr);
FDPP_API const char* variant_name(const AttentionPlan& plan);
// The splits of `variant` that are worth timing for this problem, its own choice first.
FDPP_API Status attention_splits(const AttentionProblem& problem, const DeviceInfo& device, const std::string& variant,
                                 std::vector<AttentionSplit>* splits);

// `inputs` and `outputs` in the order of the op; the tensors checked and planned for. past and present may be the same
// buffers (then the new tokens are appended in place), otherwise past is copied.
FDPP_API Status run_attention(const AttentionProblem& problem, const AttentionPlan& plan, const TensorView* inputs,
                              const TensorView* outputs, void* workspace, const ExecutionContext& context);

}  // namespace fdpp
