#include "kernels/gemm/cuda/dequantise.h"

#include "kernels/common/ceil_div.h"
#include "kernels/gemm/cuda/weights.cuh"

namespace fdpp {
namespace {

constexpr int kThreads = 256;
constexpr int kValues = 8;  // of a thread, in a row

// B's rows lie `row_bytes` apart; `blocks` of a row and `block_log`, the logarithm of their size, are int4's.
template <typename T, WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const unsigned char* __restrict__ b, const T* __restrict__ scales,
                      const unsigned char* __restrict__ zero_points, T* y, int64_t rows, int k, int64_t row_bytes,
                      int blocks, int block_log, int scale_stride) {
  const int pieces = k / kValues;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (piece >= rows * pieces) return;
  const int64_t row = piece / pieces;
  const int first = static_cast<int>(piece % pieces) * kValues;
  const unsigned char* const from = b + row * row_bytes;

  float values[kValues];
  float scale;
  if constexpr (kFormat == WeightFormat::int4) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(from + first / 2);
    const int block = first >> block_log;
    scale = to_float(scales[row * blocks + block]);
    const int zero =
        zero_points == nullptr ? 8 : zero_points[row * ((blocks + 1) / 2) + block / 2] >> block % 2 * 4 & 15;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = static_cast<float>(static_cast<int>(word >> 4 * (i / 2 + i % 2 * 4) & 15) - zero);
  } else {
    const uint2 bytes = *reinterpret_cast<const uint2*>(from + first);
    const uint32_t words[2] = {bytes.x, bytes.y};
    scale = to_float(scales[row * scale_stride]);
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      uint32_t low, high;
      Weights<__half, kFormat>::fragment(words, w, low, high);  // float16 holds them all
      const float2 a = unpack2<__half>(low), c = unpack2<__half>(high);
      values[4 * w] = a.x, values[4 * w + 1] = a.y, values[4 * w + 2] = c.x, values[4 * w + 3] = c.y;
    }
  }
  uint32_t pairs[kValues / 2];
#pragma unroll
  for (int i = 0; i < kValues / 2; ++i) pairs[i] = pack2<T>(values[2 * i] * scale, values[2 * i + 1] * scale);
  *reinterpret_cast<uint4*>(y + row * k + first) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

template <typename T, WeightFormat kFormat>
Status launch(const GemmParams& params, void* y, cudaStream_t stream) {
  const GemmProblem& p = params.problem;
  const int64_t rows = p.weight_rows(), blocks = p.blocks();
  dequantise_kernel<T, kFormat><<<static_cast<unsigned>(ceil_div(rows * (p.k / kValues), kThreads)), kThreads, 0, stream>>>(
      static_cast<const unsigned char*>(params.b), static_cast<const T*>(params.scales),
      static_cast<const unsigned char*>(params.zero_points), static_cast<T*>(y), rows, static_cast<int>(p.k),
      weight_row_bytes(p), static_cast<int>(blocks), block_log(p), p.one_scale ? 0 : 1);
  return check_launch("dequantise");
}

template <typename T>
Status launch_format(const GemmParams& params, void* y, cudaStream_t stream) {
  switch (params.problem.weight_format) {
    case WeightFormat::int8: return launch<T, WeightFormat::int8>(params, y, stream);
    case WeightFormat::fp8: return launch<T, WeightFormat::fp8>(params, y, stream);
    default: return launch<T, WeightFormat::int4>(params, y, stream);
  }
}

}  // namespace

size_t dequantise_bytes(const GemmProblem& p) {
  if (weight_dtype(p.weight_format) == p.dtype) return 0;
  return static_cast<size_t>(ceil_div(p.weight_rows() * p.k * dtype_size(p.dtype), 256)) * 256;
}

Status dequantise(const GemmParams& params, void** workspace, cudaStream_t stream, GemmParams* out) {
  const GemmProblem& p = params.problem;
  const size_t bytes = dequantise_bytes(p);
  *out = params;
  if (bytes == 0) return {};
  if (*workspace == nullptr)
    return invalid_argument("FdppFlatGemm: workspace is null, expected at least " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(params.b) % 8 != 0)
    return invalid_argument("FdppFlatGemm: B does not start at a multiple of 8 bytes");
  FDPP_RETURN_IF_ERROR(p.dtype == DType::f16 ? launch_format<__half>(params, *workspace, stream)
                                             : launch_format<__nv_bfloat16>(params, *workspace, stream));
  out->b = *workspace;
  out->scales = out->zero_points = nullptr;
  out->problem.weight_format = p.dtype == DType::f16 ? WeightFormat::f16 : WeightFormat::bf16;
  out->problem.block_size = 0;
  out->problem.one_scale = out->problem.has_zero_points = false;
  *workspace = static_cast<char*>(*workspace) + bytes;
  return {};
}

}  // namespace fdpp
