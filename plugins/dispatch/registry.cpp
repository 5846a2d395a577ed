#include "dispatch/registry.h"

#include "fdpp/dispatch.h"

namespace fdpp {

#if FDPP_X86
extern const AttentionVariant kCpuAvx512Attention;
extern const AttentionVariant kCpuAvx2Attention;
extern const GemmVariant kCpuAvx512VnniGemv;
extern const GemmVariant kCpuAvx512VnniFlat;
extern const GemmVariant kCpuAvx512Gemv;
extern const GemmVariant kCpuAvx512Flat;
extern const GemmVariant kCpuAvx2VnniGemv;
extern const GemmVariant kCpuAvx2VnniFlat;
extern const GemmVariant kCpuAvx2Gemv;
extern const GemmVariant kCpuAvx2Flat;
#endif
extern const AttentionVariant kCpuScalarAttention;
extern const GemmVariant kCpuScalarFlat;
extern const GemmVariant kCpuRuntimeGemm;
#if FDPP_CUDA
extern const AttentionVariant kCudaDecodeShortAttention;
extern const AttentionVariant kCudaDecodeBulkAttention;
extern const AttentionVariant kCudaDecodeAttention;
extern const AttentionVariant kCudaPrefillHopperAttention;
extern const AttentionVariant kCudaPrefillAttention;
extern const GemmVariant kCudaGemv;
extern const GemmVariant kCudaFlatHopper;
extern const GemmVariant kCudaFlatInt4;
extern const GemmVariant kCudaFlatMma;
extern const GemmVariant kCublasLt;
#endif

const std::vector<const AttentionVariant*>& attention_variants() {
  static const std::vector<const AttentionVariant*> variants = {
#if FDPP_X86
      &kCpuAvx512Attention,
      &kCpuAvx2Attention,
#endif
      &kCpuScalarAttention,
#if FDPP_CUDA
      &kCudaDecodeShortAttention,
      &kCudaDecodeBulkAttention,
      &kCudaDecodeAttention,
      &kCudaPrefillHopperAttention,
      &kCudaPrefillAttention,
#endif
  };
  return variants;
}

const std::vector<const GemmVariant*>& gemm_variants() {
  static const std::vector<const GemmVariant*> variants = {
#if FDPP_X86
      &kCpuAvx512VnniGemv,
      &kCpuAvx512VnniFlat,
      &kCpuAvx512Gemv,
      &kCpuAvx512Flat,
      &kCpuAvx2VnniGemv,
      &kCpuAvx2VnniFlat,
      &kCpuAvx2Gemv,
      &kCpuAvx2Flat,
#endif
      &kCpuScalarFlat,
      &kCpuRuntimeGemm,
#if FDPP_CUDA
      &kCudaGemv,
      &kCudaFlatHopper,
      &kCudaFlatInt4,
      &kCudaFlatMma,
      &kCublasLt,
#endif
  };
  return variants;
}

std::vector<VariantInfo> list_variants() {
  std::vector<VariantInfo> list;
  for (const auto* v : attention_variants())
    list.push_back({attention_spec().name, v->name, v->backend, "", v->summary});
  for (const auto* v : gemm_variants())
    list.push_back({gemm_spec().name, v->name, v->backend, gemm_kind_name(v->kind), v->summary});
  return list;
}

}  // namespace fdpp
