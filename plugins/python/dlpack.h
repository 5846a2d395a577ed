// Borrowing tensors of any Python library through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "fdpp/types.h"

// The DLPack ABI: names and layout are those of the Python array API's exchange protocol.
extern "C" {

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: dense row-major
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

}  // extern "C"

namespace fdpp::python {

inline constexpr int32_t kDlCpu = 1;
inline constexpr int32_t kDlCuda = 2;

// A tensor that stays alive, uncopied, as long as this object. Made and destroyed with the GIL held.
class BorrowedTensor {
 public:
  // Raises ValueError, naming the tensor `name`, where `object` is no tensor of a known element type.
  BorrowedTensor(const std::string& name, const pybind11::handle& object);
  ~BorrowedTensor();
  BorrowedTensor(BorrowedTensor&& other) noexcept;
  BorrowedTensor(const BorrowedTensor&) = delete;
  BorrowedTensor& operator=(const BorrowedTensor&) = delete;

  const TensorView& view() const { return view_; }
  DLDevice device() const { return managed_->dl_tensor.device; }

 private:
  DLManagedTensor* managed_ = nullptr;
  TensorView view_;
};

}  // namespace fdpp::python
