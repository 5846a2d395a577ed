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

// A dense row-major tensor that somebody else owns. An absent optional tensor has dtype undefined. `data` may be null
// while only shapes are known (shape inference) or where the tensor has no element.
struct TensorView {
  static constexpr int kMaxRank = 8;

  void* data = nullptr;
  DType dtype = DType::undefined;
  int rank = 0;
  int64_t dims[kMaxRank] = {};

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
};

// "[2, 9, 128, 64]"
FDPP_API std::string shape_string(const TensorView& tensor);

}  // namespace fdpp
