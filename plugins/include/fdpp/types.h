// Element types and tensor views shared by every adapter and kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "fdpp/status.h"

namespace fdpp {

enum class DType : uint8_t { f32, f16, bf16, f8e4m3, i32, i64, u8, i8, undefined };

// Bytes of one element; 0 for undefined.
FDPP_API size_t dtype_size(DType dtype);
// "float32", "float16", ...: the names that numpy and ONNX users know.
FDPP_API const char* dtype_name(DType dtype);

// A tensor that somebody else owns, dense and row-major unless its strides say otherwise. An absent optional tensor has
// dtype undefined. `data` may be null while only shapes are known (shape inference) or where the tensor has no element.
struct TensorView {
  static constexpr int kMaxRank = 8;

  void* data = nullptr;
  DType dtype = DType::undefined;
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  bool has_strides = false;
  int64_t strides[kMaxRank] = {};  // in elements, of each dimension; read where has_strides says so

  TensorView() = default;
  TensorView(void* data_, DType dtype_, std::initializer_list<int64_t> shape) : data(data_), dtype(dtype_) {
    for (int64_t d : shape) dims[rank++] = d;
  }

  bool present() const { return dtype != DType::undefined; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  // Whether the elements lie side by side in row-major order.
  bool is_dense() const {
    if (!has_strides || elements() == 0) return true;
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (dims[i] != 1 && strides[i] != expected) return false;
      expected *= dims[i];
    }
    return true;
  }
};

// "[2, 9, 128, 64]"
FDPP_API std::string shape_string(const TensorView& tensor);
// Of a tensor with strides: "[2, 64] with strides [128, 1]"
FDPP_API std::string layout_string(const TensorView& tensor);

}  // namespace fdpp
