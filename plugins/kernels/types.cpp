#include "fdpp/types.h"

namespace fdpp {
namespace {

std::string list_string(const int64_t* values, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

}  // namespace

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i64: return 8;
    case DType::f8e4m3:
    case DType::u8:
    case DType::i8: return 1;
    case DType::undefined: break;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::f8e4m3: return "float8e4m3fn";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::u8: return "uint8";
    case DType::i8: return "int8";
    case DType::undefined: break;
  }
  return "undefined";
}

std::string shape_string(const TensorView& tensor) { return list_string(tensor.dims, tensor.rank); }

std::string layout_string(const TensorView& tensor) {
  return shape_string(tensor) + " with strides " + list_string(tensor.strides, tensor.rank);
}

}  // namespace fdpp
