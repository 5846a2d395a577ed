// Decode attention over short contexts.
#include <string>

#include "kernels/attention/cuda/decode_short_kernel.cuh"
#include "kernels/attention/cuda/launch.h"
#include "kernels/attention/variant.h"

namespace fdpp {
namespace {

constexpr int64_t kLargestHead = 128;
constexpr int64_t kSmallHead = 64;  // up to here the faster one for any number of blocks, by times on an H200

int64_t row_tiles_of(const AttentionProblem& p) { return ceil_div(p.group(), kShortRows); }
int64_t blocks_of(const AttentionProblem& p) { return p.batch * p.kv_heads * row_tiles_of(p); }

bool supports(const AttentionProblem& p, const DeviceInfo& device, std::string* why) {
  if (!takes_attention(p, device, why)) return false;
  if (p.quantized()) {
    *why = "takes no 8-bit cache";
  } else if (p.query_length != 1) {
    *why = "takes one new token, not " + std::to_string(p.query_length);
  } else if (p.total_length > kShortContext) {
    *why = "takes at most " + std::to_string(kShortContext) + " tokens a row, not " + std::to_string(p.total_length);
  } else if (p.head_size > kLargestHead) {
    *why = "takes head sizes up to " + std::to_string(kLargestHead) + ", not " + std::to_string(p.head_size);
  } else if (p.head_size > kSmallHead && blocks_of(p) > device.multiprocessors) {
    *why = "takes at most one block for each of the " + std::to_string(device.multiprocessors) +
           " multiprocessors where head sizes are above " + std::to_string(kSmallHead) + ", not " +
           std::to_string(blocks_of(p));
  } else {
    return true;
  }
  return false;
}

AttentionSplit split(const AttentionProblem&, const DeviceInfo&) { return {}; }

size_t workspace_bytes(const AttentionProblem&, const AttentionSplit&) { return 0; }

template <typename T, int D>
Status launch(const AttentionParams& params, const ExecutionContext& context) {
  const AttentionProblem& p = params.problem;
  DeviceInfo device;
  FDPP_RETURN_IF_ERROR(current_gpu_device(&device));
  cudaLaunchAttribute overlap{};  // there from compute capability 9.0 on
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks_of(p)));
  config.blockDim = dim3(32 * kShortWarps);
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = &overlap;
  config.numAttrs = device.compute_capability >= 90 ? 1 : 0;
  return check_gpu(cudaLaunchKernelEx(&config, short_decode_kernel<T, D>, make_args<T, T>(params, context),
                                      static_cast<int>(p.kv_heads), static_cast<int>(row_tiles_of(p))),
                   "short_decode_kernel");
}

template <typename T>
Status launch_typed(const AttentionParams& params, const ExecutionContext& context) {
  return params.problem.head_size <= kSmallHead ? launch<T, kSmallHead>(params, context)
                                                : launch<T, kLargestHead>(params, context);
}

Status run(const AttentionParams& params, const AttentionSplit&, void*, const ExecutionContext& context) {
  FDPP_RETURN_IF_ERROR(check_alignment(params));
  FDPP_RETURN_IF_ERROR(copy_past(params, static_cast<cudaStream_t>(context.stream)));
  return params.problem.dtype == DType::f16 ? launch_typed<__half>(params, context)
                                            : launch_typed<__nv_bfloat16>(params, context);
}

}  // namespace

extern const AttentionVariant kCudaDecodeShortAttention;
const AttentionVariant kCudaDecodeShortAttention = {
    "cuda_decode_short",
    Backend::cuda,
    "decode over at most 128 tokens: keys and values straight into the registers of four warps",
    supports,
    split,
    workspace_bytes,
    run,
};

}  // namespace fdpp
