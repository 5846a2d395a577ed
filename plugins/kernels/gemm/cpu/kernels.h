// The GEMM kernels, compiled once for each instruction set. The files that are compiled with its flags hold nothing
// else: no inline function of theirs may reach a processor that lacks the instructions.
#pragma once

#include "fdpp/device.h"
#include "kernels/gemm/params.h"

namespace fdpp {

constexpr int64_t kGemvRows = 4;  // rows of A that gemv takes

using GemmKernel = void(const GemmParams& params, const HostRuntime* host);
// to[0..count) = from[0..count), a float16 or bfloat16 array.
using WidenKernel = void(const void* from, DType dtype, float* to, int64_t count);

GemmKernel gemv_avx2, gemv_avx512;
GemmKernel flat_scalar, flat_avx2, flat_avx512;
WidenKernel widen_scalar, widen_avx2, widen_avx512;

}  // namespace fdpp
