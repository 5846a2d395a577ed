// FdppAttention: rotary embedding, append to the KV cache and causal grouped-query attention in one op.
//
//   check_attention()  the user's tensors  -> AttentionProblem   (host; every error names its tensor)
//   plan_attention()   problem and device  -> AttentionPlan      (host; picks the kernel variant)
//   run_attention()    plan and tensors    -> launches           (never allocates, synchronises or throws)
//
// Layouts (row-major): query [B, S, Hq * D], or packed [B, S, (Hq + 2 * Hkv) * D] with key and value absent; key and
// value [B, S, Hkv * D]; past and present [B, Hkv, L, D], the capacity L being present's second-last dimension; seqlens_k
// int32 [B], the total length of each row minus 1; total_sequence_length int32 scalar in host memory; cos_cache and
// sin_cache [positions, rotary_dim / 2]; head_sink [Hq]; output [B, S, Hq * D].
//
// Row b holds n_b = seqlens_k[b] + 1 tokens once the S new ones are appended. Where S equals total_sequence_length this is
// a prompt: the new tokens take positions 0..S-1, and those at n_b and beyond are right padding, whose output is 0.
// Otherwise they take positions n_b - S .. n_b - 1. A token at position p attends to positions 0..p, with
// local_window_size w >= 0 only to the last w of them (its own included).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "fdpp/device.h"
#include "fdpp/op_spec.h"
#include "fdpp/status.h"
#include "fdpp/types.h"

namespace fdpp {

enum class SoftmaxMode : uint8_t {
  lazy,    // exact running maximum, rescaled only when it grows by more than a threshold
  online,  // exact running maximum, rescaled with every block of keys
};
FDPP_API const char* softmax_mode_name(SoftmaxMode mode);
FDPP_API Status parse_softmax_mode(const std::string& text, SoftmaxMode* out);

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
  DType cache_dtype = DType::undefined;  // of past and present
  bool packed_qkv = false;
  bool prompt = false;             // S == total_length: positions start at 0, rows may be right-padded
  int64_t rotary_dim = 0;          // 0: no rotary embedding
  bool rotary_interleaved = false;
  bool has_sink = false;
  float scale = 0;
  float softcap = 0;
  int64_t window = -1;
  SoftmaxMode softmax_mode = SoftmaxMode::lazy;

  int64_t group() const { return q_heads / kv_heads; }
};
FDPP_API std::string describe(const AttentionProblem& problem);

// Checks shapes, types and attributes of `inputs` (AttentionInput order) and fills `problem`. Values are read of
// total_sequence_length alone. The dimensions of present follow: [B, Hkv, problem->capacity, D].
FDPP_API Status check_attention(const AttentionAttributes& attributes, const TensorView* inputs,
                                AttentionProblem* problem);

// Checks the values of seqlens_k where the host can read them (the CPU backend calls it before it plans).
FDPP_API Status check_seqlens(const AttentionProblem& problem, const int32_t* seqlens_k);

struct AttentionVariant;

struct AttentionPlan {
  const AttentionVariant* variant = nullptr;
  int num_splits = 1;           // pieces of the context that are worked on side by side
  size_t workspace_bytes = 0;   // in the device's memory, 256-byte aligned, contents arbitrary
  const char* reason = "";      // why this variant; static text
};

// `variant` names the variant to take, an error where it does not take the problem; empty: force_variant(), then the
// dispatch table decide.
FDPP_API Status plan_attention(const AttentionProblem& problem, const DeviceInfo& device, AttentionPlan* plan,
                               const std::string& variant = "");
FDPP_API const char* variant_name(const AttentionPlan& plan);

// `inputs` and `outputs` in the order of the op; the tensors checked and planned for. past and present may be the same
// buffers (then the new tokens are appended in place), otherwise past is copied.
FDPP_API Status run_attention(const AttentionProblem& problem, const AttentionPlan& plan, const TensorView* inputs,
                              const TensorView* outputs, void* workspace, const ExecutionContext& context);

}  // namespace fdpp
