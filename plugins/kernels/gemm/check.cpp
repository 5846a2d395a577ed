// The one place that says which FdppFlatGemm calls are well-formed.
#include "fdpp/gemm.h"

namespace fdpp {
namespace {

Status bad(const std::string& what) { return invalid_argument("FdppFlatGemm: " + what); }

Status parse_weight_format(const std::string& text, DType* out) {
  for (auto [name, dtype] : {std::pair<const char*, DType>{"f32", DType::f32}, {"f16", DType::f16}, {"bf16", DType::bf16}}) {
    if (text == name) {
      *out = dtype;
      return {};
    }
  }
  return not_supported("FdppFlatGemm: weight_format \"" + text + "\" is not supported, expected f32, f16 or bf16");
}

}  // namespace

Status check_gemm(const GemmAttributes& attributes, const TensorView* in, GemmProblem* problem) {
  const OpSpec& spec = gemm_spec();
  GemmProblem p;
  p.n = attributes.n;
  p.k = attributes.k;
  if (p.n <= 0 || p.k <= 0)
    return bad("N is " + std::to_string(p.n) + " and K is " + std::to_string(p.k) + ", expected positive numbers");
  FDPP_RETURN_IF_ERROR(parse_weight_format(attributes.weight_format, &p.weight_dtype));
  if (attributes.activation != "none")
    return not_supported("FdppFlatGemm: activation \"" + attributes.activation + "\" is not supported, expected none");
  for (int i : {kGemmA, kGemmB})
    if (!in[i].present()) return bad(std::string(spec.inputs[i].name) + " is missing");
  for (int i : {kGemmScales, kGemmZeroPoints, kGemmNormWeight})
    if (in[i].present())
      return not_supported(std::string("FdppFlatGemm: input ") + spec.inputs[i].name + " is not supported");

  const TensorView& a = in[kGemmA];
  const TensorView& b = in[kGemmB];
  p.dtype = a.dtype;
  if (p.dtype != DType::f32 && p.dtype != DType::f16 && p.dtype != DType::bf16)
    return bad(std::string("A is ") + dtype_name(a.dtype) + ", expected float32, float16 or bfloat16");
  if (b.dtype != p.weight_dtype)
    return bad(std::string("B is ") + dtype_name(b.dtype) + " but weight_format says " + attributes.weight_format);
  if (a.rank < 1 || a.dims[a.rank - 1] != p.k)
    return bad("A has shape " + shape_string(a) + ", expected a last dimension of K = " + std::to_string(p.k));
  p.m = a.elements() / p.k;
  if (b.rank != 2 || b.dims[0] != p.n || b.dims[1] != p.k)
    return bad("B has shape " + shape_string(b) + ", expected [N, K] = [" + std::to_string(p.n) + ", " +
               std::to_string(p.k) + "]");

  const TensorView& bias = in[kGemmBias];
  p.has_bias = bias.present();
  if (p.has_bias && (bias.dtype != p.dtype || bias.rank != 1 || bias.dims[0] != p.n))
    return bad(std::string("bias is ") + dtype_name(bias.dtype) + " " + shape_string(bias) + ", expected " +
               dtype_name(p.dtype) + " [" + std::to_string(p.n) + "]");

  const TensorView& residual = in[kGemmResidual];
  p.has_residual = residual.present();
  if (p.has_residual) {
    TensorView y = a;
    y.dims[y.rank - 1] = p.n;
    if (residual.dtype != p.dtype || shape_string(residual) != shape_string(y))
      return bad(std::string("residual is ") + dtype_name(residual.dtype) + " " + shape_string(residual) +
                 ", expected " + dtype_name(p.dtype) + " " + shape_string(y));
  }
  *problem = p;
  return {};
}

std::string describe(const GemmProblem& p) {
  return "M=" + std::to_string(p.m) + " N=" + std::to_string(p.n) + " K=" + std::to_string(p.k) + " " +
         dtype_name(p.dtype) + " weights " + dtype_name(p.weight_dtype) + (p.has_bias ? " +bias" : "") +
         (p.has_residual ? " +residual" : "");
}

}  // namespace fdpp
