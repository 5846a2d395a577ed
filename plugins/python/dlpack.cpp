#include "dlpack.h"

#include <algorithm>
#include <string>
#include <utility>

namespace py = pybind11;

namespace fdpp::python {
namespace {

enum DlTypeCode : uint8_t { kDlInt = 0, kDlUInt = 1, kDlFloat = 2, kDlBfloat = 4, kDlFloat8E4m3fn = 10 };

DType dtype_of(const DLDataType& type) {
  if (type.lanes != 1) return DType::undefined;
  switch (type.code) {
    case kDlFloat: return type.bits == 32 ? DType::f32 : type.bits == 16 ? DType::f16 : DType::undefined;
    case kDlBfloat: return type.bits == 16 ? DType::bf16 : DType::undefined;
    case kDlFloat8E4m3fn: return type.bits == 8 ? DType::f8e4m3 : DType::undefined;
    case kDlInt:
      if (type.bits == 32) return DType::i32;
      if (type.bits == 64) return DType::i64;
      return type.bits == 8 ? DType::i8 : DType::undefined;
    case kDlUInt: return type.bits == 8 ? DType::u8 : DType::undefined;
    default: return DType::undefined;
  }
}

DLManagedTensor* take_capsule(const std::string& name, const py::handle& object) {
  if (!py::hasattr(object, "__dlpack__"))
    throw py::value_error(name + " is a " + py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>() +
                          ", expected a tensor that speaks DLPack (a NumPy array, a torch tensor)");
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
  // Stream -1: ordering with the producer's work is the caller's, who names the stream to run on.
  py::object capsule = device.first == kDlCuda ? object.attr("__dlpack__")(py::arg("stream") = -1)
                                               : object.attr("__dlpack__")();
  void* managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
  if (managed == nullptr) throw py::error_already_set();
  if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
  return static_cast<DLManagedTensor*>(managed);
}

void release(DLManagedTensor* managed) {
  if (managed != nullptr && managed->deleter != nullptr) managed->deleter(managed);
}

TensorView view_of(const std::string& name, const DLTensor& tensor) {
  TensorView view;
  view.dtype = dtype_of(tensor.dtype);
  if (!view.present())
    throw py::value_error(name + " has DLPack type code " + std::to_string(tensor.dtype.code) + " with " +
                          std::to_string(tensor.dtype.bits) +
                          " bits, expected float32, float16, bfloat16, float8e4m3fn, int32, int64, int8 or uint8");
  if (tensor.ndim > TensorView::kMaxRank)
    throw py::value_error(name + " has rank " + std::to_string(tensor.ndim) + ", expected at most " +
                          std::to_string(TensorView::kMaxRank));
  view.rank = tensor.ndim;
  std::copy_n(tensor.shape, tensor.ndim, view.dims);
  view.has_strides = tensor.strides != nullptr;
  if (view.has_strides) std::copy_n(tensor.strides, tensor.ndim, view.strides);
  view.data = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

}  // namespace

BorrowedTensor::BorrowedTensor(const std::string& name, const py::handle& object)
    : managed_(take_capsule(name, object)) {
  try {
    view_ = view_of(name, managed_->dl_tensor);
  } catch (...) {
    release(managed_);
    throw;
  }
}

BorrowedTensor::BorrowedTensor(BorrowedTensor&& other) noexcept
    : managed_(std::exchange(other.managed_, nullptr)), view_(other.view_) {}

BorrowedTensor::~BorrowedTensor() { release(managed_); }

}  // namespace fdpp::python
