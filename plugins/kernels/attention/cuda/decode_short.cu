// Decode attention over short contexts: chooses how many warps share a KV head's keys.
#include <string>

#include "kernels/attention/cuda/decode_short_kernel.cuh"
#include "kernels/attention/cuda/launch.h"
#include "kernels/attention/variant.h"

namespace fdpp {
namespace {

constexpr int64_t kShortContext = 2048;
constexpr int64_t kLargestHead = 128;

bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (!takes_attention(p, device, why)) return false;
  if (p.quantized()) {
    *why = "takes no 8-bit cache";
  } else if (p.query_length != 1 || p.group() > kShortRows) {
    *why = "takes one new token and at most " + std::to_string(kShortRows) + " query heads per KV head, not " +
           std::to_string(p.query_length) + " and " + std::to_string(p.group());
  } else if (p.total_length > kShortContext) {
    *why = "takes at most " + std::to_string(kShortContext) + " tokens a row, not " + std::to_string(p.total_length);
  } else if (p.head_size > kLargestHead) {
    *why = "takes head sizes up to " + std::to_string(kLargestHead) + ", not " + std::to_string(p.head_size);
  } else {
    return true;
  }
  return false;
}

// pieces: warps that share a KV head. All four of a block where that leaves each enough room.
AttentionSplit split(const AttentionProblem& p, const DeviceInfo& device) {
  AttentionSplit d;
  if (p.batch * p.kv_heads <= 2 * device.multiprocessors) d.pieces = kShortWarps;
  return d;
}

size_t workspace_bytes(const AttentionProblem&, const AttentionSplit&) { return 0; }

template <typename T, int D, int kSharing>
Status launch(const AttentionParams& params, const ExecutionContext& context) {
  const int units = static_cast<int>(params.problem.batch * params.problem.kv_heads);
  constexpr int kUnits = kShortWarps / kSharing;  // of a block
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((units + kUnits - 1) / kUnits);
  config.blockDim = dim3(32 * kShortWarps);
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = &overlap;
  config.numAttrs = 1;
  return check_gpu(cudaLaunchKernelEx(&config, short_decode_kernel<T, D, kSharing>, make_args<T, T>(params, context),
                                      static_cast<int>(params.problem.kv_heads), units),
                   "short_decode_kernel");
}

template <typename T, int D>
Status launch_shared(const AttentionParams& params, const AttentionSplit& split, const ExecutionContext& context) {
  return split.pieces < kShortWarps ? launch<T, D, 1>(params, context) : launch<T, D, kShortWarps>(params, context);
}

template <typename T>
Status launch_typed(const AttentionParams& params, const AttentionSplit& split, const ExecutionContext& context) {
  if (params.problem.head_size <= 64) return launch_shared<T, 64>(params, split, context);
  return launch_shared<T, 128>(params, split, context);
}

Status run(const AttentionParams& params, const AttentionSplit& split, void*, const ExecutionContext& context) {
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, static_cast<cudaStream_t>(context.stream)));
  return params.problem.dtype == DType::f16 ? launch_typed<__half>(params, split, context)
                                            : launch_typed<__nv_bfloat16>(params, split, context);
}

}  // namespace

extern const AttentionVariant kCudaDecodeShortAttention;
const AttentionVariant kCudaDecodeShortAttention = {
    "cuda_decode_short",
    Backend::cuda,
    "decode over at most 256 tokens: keys and values straight into the registers of one warp or four",
    supports,
    split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
