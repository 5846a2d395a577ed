// The one place that says which FdppFlatGemm calls are well-formed.
#include <algorithm>
#include <cmath>

#include "fdpp/gemm.h"

namespace fdpp {
namespace {

constexpr auto kActivations = {Activation::none,      Activation::relu, Activation::gelu,
                               Activation::gelu_tanh, Activation::silu, Activation::silu_mul};
constexpr auto kNorms = {Norm::rms, Norm::layer};

Status bad(const std::string& what) { return invalid_argument("FdppFlatGemm: " + what); }

template <typename Enum>
Status parse(const char* attribute, const std::string& text, std::initializer_list<Enum> values,
             const char* (*name)(Enum), Enum* out) {
  for (Enum value : values) {
    if (text != name(value)) continue;
    *out = value;
    return {};
  }
  std::string known;
  for (const Enum& value : values)
    known += std::string(known.empty() ? "" : &value + 1 < values.end() ? ", " : " or ") + name(value);
  return bad(std::string(attribute) + " is \"" + text + "\", expected " + known);
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.rank == b.rank && std::equal(a.dims, a.dims + a.rank, b.dims);
}

std::string typed(const TensorView& t) { return std::string(dtype_name(t.dtype)) + " " + shape_string(t); }

// An input that is there has the type and shape of `expected`.
Status check_input(const TensorView* in, GemmInput input, const TensorView& expected) {
  const TensorView& given = in[input];
  if (!given.present() || (given.dtype == expected.dtype && same_shape(given, expected))) return {};
  return bad(std::string(gemm_spec().inputs[input].name) + " is " + typed(given) + ", expected " + typed(expected));
}

Status check_next_weight(const TensorView& next, DType weights) {
  if (!next.present() || (next.dtype == weights && next.rank > 0)) return {};
  return bad(std::string("next_weight is ") + typed(next) + ", expected a tensor of " + dtype_name(weights) +
             " like B, of one dimension or more");
}

// What lies between A's rows: all of its dimensions but the last are to be one.
Status find_row_stride(const TensorView& a, GemmProblem* p) {
  if (a.is_dense()) return {};
  const auto bad_layout = [&a](const std::string& expected) {
    return bad("A is " + layout_string(a) + ", expected " + expected);
  };
  const int last = a.rank - 1;
  if (a.dims[last] != 1 && a.strides[last] != 1) return bad_layout("a stride of 1 in the last dimension");
  int64_t rows = 1;
  for (int i = last - 1; i >= 0; --i) {
    if (a.dims[i] == 1) continue;
    if (rows == 1) p->a_row_stride = a.strides[i];
    const int64_t stride = rows * p->a_row_stride;
    if (a.strides[i] != stride)
      return bad_layout("one distance between all rows: a stride of " + std::to_string(stride) + " in dimension " +
                        std::to_string(i));
    rows *= a.dims[i];
  }
  if (p->a_row_stride < p->k) return bad_layout("rows at least K = " + std::to_string(p->k) + " apart");
  return {};
}

// B, scales and zero_points.
Status check_weights(const TensorView* in, GemmProblem* p) {
  const TensorView& b = in[kGemmB];
  const char* const format = weight_format_name(p->weight_format);
  const bool is_int4 = p->weight_format == WeightFormat::int4;
  const int64_t rows = p->weight_rows();
  if (b.dtype != weight_dtype(p->weight_format))
    return bad(std::string("B is ") + dtype_name(b.dtype) + " but weight_format says " + format);
  const TensorView packed(nullptr, b.dtype, {rows, is_int4 ? p->blocks() * p->block_size / 2 : p->k});
  if (!same_shape(b, packed))
    return bad("B has shape " + shape_string(b) + ", expected " +
               (p->activation == Activation::silu_mul ? "[2N, " : "[N, ") +
               (is_int4 ? "ceil(K / block_size) * block_size / 2]" : "K]") + " = " + shape_string(packed));

  const bool quantised = is_int4 || p->weight_format == WeightFormat::int8 || p->weight_format == WeightFormat::fp8;
  if (in[kGemmScales].present() != quantised)
    return bad(quantised ? std::string("scales is missing, which weight_format ") + format + " needs"
                         : std::string("scales is given, but weight_format ") + format + " has none");
  if (in[kGemmZeroPoints].present() && !is_int4)
    return bad(std::string("zero_points is given, but weight_format ") + format + " has none");

  const TensorView& scales = in[kGemmScales];
  p->one_scale = p->weight_format == WeightFormat::fp8 && scales.rank == 1 && scales.dims[0] == 1;
  p->has_zero_points = in[kGemmZeroPoints].present();
  if (is_int4) {
    FDPP_RETURN_IF_ERROR(check_input(in, kGemmScales, {nullptr, p->dtype, {rows, p->blocks()}}));
    return check_input(in, kGemmZeroPoints, {nullptr, DType::u8, {rows, (p->blocks() + 1) / 2}});
  }
  return check_input(in, kGemmScales, {nullptr, p->dtype, {p->one_scale ? 1 : rows}});
}

}  // namespace

const char* weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return "f32";
    case WeightFormat::f16: return "f16";
    case WeightFormat::bf16: return "bf16";
    case WeightFormat::int8: return "int8";
    case WeightFormat::fp8: return "fp8";
    case WeightFormat::int4: return "int4";
  }
  return "?";
}

DType weight_dtype(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32: return DType::f32;
    case WeightFormat::f16: return DType::f16;
    case WeightFormat::bf16: return DType::bf16;
    case WeightFormat::int8: return DType::i8;
    case WeightFormat::fp8: return DType::f8e4m3;
    case WeightFormat::int4: return DType::u8;
  }
  return DType::undefined;
}

const char* activation_name(Activation activation) {
  switch (activation) {
    case Activation::none: return "none";
    case Activation::relu: return "relu";
    case Activation::gelu: return "gelu";
    case Activation::gelu_tanh: return "gelu_tanh";
    case Activation::silu: return "silu";
    case Activation::silu_mul: return "silu_mul";
  }
  return "?";
}

const char* norm_name(Norm norm) {
  switch (norm) {
    case Norm::none: return "none";
    case Norm::rms: return "rms";
    case Norm::layer: return "layer";
  }
  return "?";
}

int64_t GemmProblem::weight_rows() const { return activation == Activation::silu_mul ? 2 * n : n; }

int64_t GemmProblem::blocks() const { return block_size == 0 ? 0 : (k + block_size - 1) / block_size; }

bool GemmProblem::rounds_a() const { return weight_format == WeightFormat::int4 && accuracy_level == 4; }

Status check_gemm_attributes(const GemmAttributes& attributes, GemmProblem* p) {
  p->n = attributes.n;
  p->k = p->a_row_stride = attributes.k;
  if (p->n <= 0 || p->k <= 0)
    return bad("N is " + std::to_string(p->n) + " and K is " + std::to_string(p->k) + ", expected positive numbers");
  FDPP_RETURN_IF_ERROR(
      parse("weight_format", attributes.weight_format, kWeightFormats, weight_format_name, &p->weight_format));
  FDPP_RETURN_IF_ERROR(parse("activation", attributes.activation, kActivations, activation_name, &p->activation));

  const int64_t block = attributes.block_size;
  if (p->weight_format == WeightFormat::int4) {
    if (block != 16 && block != 32 && block != 64 && block != 128)
      return bad("block_size is " + std::to_string(block) + ", expected 16, 32, 64 or 128 with weight_format int4");
  } else if (block != 0) {
    return bad("block_size is " + std::to_string(block) + ", expected 0 with weight_format " +
               attributes.weight_format + ", which has no blocks");
  }
  p->block_size = block;

  FDPP_RETURN_IF_ERROR(parse("norm", attributes.norm, kNorms, norm_name, &p->norm));
  if (!std::isfinite(attributes.norm_epsilon) || attributes.norm_epsilon < 0)
    return bad("norm_epsilon is " + std::to_string(attributes.norm_epsilon) + ", expected a number from 0 on");
  p->norm_epsilon = attributes.norm_epsilon;
  if (attributes.accuracy_level < 0 || attributes.accuracy_level > 4)
    return bad("accuracy_level is " + std::to_string(attributes.accuracy_level) + ", expected 0 to 4");
  p->accuracy_level = static_cast<int>(attributes.accuracy_level);
  return {};
}

Status check_gemm(const GemmAttributes& attributes, const TensorView* in, GemmProblem* problem) {
  GemmProblem p;
  FDPP_RETURN_IF_ERROR(check_gemm_attributes(attributes, &p));
  for (int i : {kGemmA, kGemmB})
    if (!in[i].present()) return bad(std::string(gemm_spec().inputs[i].name) + " is missing");
  for (int i = 0; i < kGemmInputCount; ++i)
    if (i != kGemmA && !in[i].is_dense())
      return bad(std::string(gemm_spec().inputs[i].name) + " is " + layout_string(in[i]) +
                 ", expected a dense row-major tensor");

  const TensorView& a = in[kGemmA];
  p.dtype = a.dtype;
  if (p.dtype != DType::f32 && p.dtype != DType::f16 && p.dtype != DType::bf16)
    return bad(std::string("A is ") + dtype_name(a.dtype) + ", expected float32, float16 or bfloat16");
  if (a.rank < 1 || a.dims[a.rank - 1] != p.k)
    return bad("A has shape " + shape_string(a) + ", expected a last dimension of K = " + std::to_string(p.k));
  p.m = a.elements() / p.k;
  FDPP_RETURN_IF_ERROR(find_row_stride(a, &p));
  FDPP_RETURN_IF_ERROR(check_weights(in, &p));

  TensorView y = a;
  y.dims[y.rank - 1] = p.n;
  p.has_bias = in[kGemmBias].present();
  p.has_residual = in[kGemmResidual].present();
  if (!in[kGemmNormWeight].present()) p.norm = Norm::none;
  FDPP_RETURN_IF_ERROR(check_input(in, kGemmBias, {nullptr, p.dtype, {p.weight_rows()}}));
  FDPP_RETURN_IF_ERROR(check_input(in, kGemmResidual, y));
  for (GemmInput input : {kGemmNormWeight, kGemmNormBias})
    FDPP_RETURN_IF_ERROR(check_input(in, input, {nullptr, p.dtype, {p.k}}));
  if (in[kGemmNormBias].present() && !p.has_norm()) return bad("norm_bias is given, but norm_weight is missing");
  FDPP_RETURN_IF_ERROR(check_next_weight(in[kGemmNextWeight], weight_dtype(p.weight_format)));
  *problem = p;
  return {};
}

std::string describe(const GemmProblem& p) {
  std::string text = "M=" + std::to_string(p.m) + " N=" + std::to_string(p.n) + " K=" + std::to_string(p.k);
  if (p.a_row_stride != p.k) text += " (rows of A " + std::to_string(p.a_row_stride) + " apart)";
  text += std::string(" ") + dtype_name(p.dtype) + " weights " + weight_format_name(p.weight_format);
  if (p.block_size != 0) text += "/" + std::to_string(p.block_size);
  if (p.has_zero_points) text += " +zero_points";
  if (p.accuracy_level != 0) text += " accuracy " + std::to_string(p.accuracy_level);
  if (p.has_norm()) text += std::string(" +") + norm_name(p.norm) + "_norm";
  if (p.has_bias) text += " +bias";
  if (p.activation != Activation::none) text += std::string(" ") + activation_name(p.activation);
  if (p.has_residual) text += " +residual";
  return text;
}

}  // namespace fdpp
