#include "kernels/common/tensor_map.h"

#include <utility>

namespace fdpp {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: the library must load where there is no driver.
Status find_encode(Encode* out) {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                               cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  if (encode == nullptr) return device_error("the GPU's driver has no cuTensorMapEncodeTiled; it is older than CUDA 12.0");
  *out = encode;
  return {};
}

// A thread has no context until the runtime gives it one, which the driver's functions do not wait for.
Status make_context_current() {
  int device = 0;
  FDPP_GPU(cudaGetDevice(&device));
  FDPP_GPU(cudaSetDevice(device));
  return {};
}

}  // namespace

Status make_tensor_map(const void* data, const TensorMapShape& s, CUtensorMap* map) {
  Encode encode = nullptr;
  FDPP_RETURN_IF_ERROR(find_encode(&encode));
  const int width = s.box_columns * s.element_bytes;
  const bool groups = s.groups > 0;
  const cuuint32_t rank = groups ? 4 : 3;
  // Columns, rows, groups where there are any, planes.
  cuuint64_t dims[4] = {static_cast<cuuint64_t>(s.columns), static_cast<cuuint64_t>(s.rows),
                        static_cast<cuuint64_t>(s.planes)};
  cuuint64_t strides[3] = {static_cast<cuuint64_t>(s.row_stride), static_cast<cuuint64_t>(s.plane_stride)};
  cuuint32_t box[4] = {static_cast<cuuint32_t>(s.box_columns), static_cast<cuuint32_t>(s.box_rows),
                       static_cast<cuuint32_t>(s.box_planes)};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  if (groups) {
    dims[3] = std::exchange(dims[2], static_cast<cuuint64_t>(s.groups));
    strides[2] = std::exchange(strides[1], static_cast<cuuint64_t>(s.group_stride));
    box[3] = std::exchange(box[2], static_cast<cuuint32_t>(s.groups));
  }
  const auto encoded = [&] {
    // Promotion to 256 bytes costs a tenth of an H200's read bandwidth (4.2 against 4.65 TB/s).
    return encode(map, s.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, rank,
                  const_cast<void*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  !s.swizzled    ? CU_TENSOR_MAP_SWIZZLE_NONE
                  : width == 128 ? CU_TENSOR_MAP_SWIZZLE_128B
                  : width == 64  ? CU_TENSOR_MAP_SWIZZLE_64B
                                 : CU_TENSOR_MAP_SWIZZLE_32B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = encoded();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {
    FDPP_RETURN_IF_ERROR(make_context_current());
    result = encoded();
  }
  if (result == CUDA_SUCCESS) return {};
  return device_error("cuTensorMapEncodeTiled refused a tensor of " + std::to_string(s.planes) + " x " +
                      std::to_string(s.rows) + " x " + std::to_string(s.columns) + " elements of " +
                      std::to_string(s.element_bytes) + " bytes: error " + std::to_string(result));
}

}  // namespace fdpp
