// Descriptors of the bulk tensor copy engine (sm_90 and later).
#pragma once

#include <cstdint>

#include "kernels/common/gpu.h"

namespace fdpp {

// `planes` matrices of `rows` rows of `columns` elements, contiguous along a row. A box is the part that one copy
// brings: box_columns * element_bytes is at most 128, a power of two of at least 32, and the swizzle's width: 16-byte
// chunk c of a box's row r lies at chunk c ^ (r % 8) (128 bytes; 64: c ^ (r / 2 % 4)); without swizzle it is any multiple
// of 16. What lies outside the tensor arrives as zeros.
//
// With groups a plane has so many matrices, group_stride apart, and a box the same rows of each of them, one group after the
// other: panels of columns, say, or gates and what they gate. One copy starts sooner than several.
struct TensorMapShape {
  int element_bytes;  // 1 or 2
  int64_t columns, rows, planes;
  int64_t row_stride, plane_stride;  // bytes, multiples of 16
  int box_columns, box_rows;
  int box_planes = 1;
  int groups = 0;            // more than none: for copy_groups() instead of copy_box()
  int64_t group_stride = 0;  // bytes, a multiple of 16
  bool swizzled = true;
};

// `data` must be a multiple of 16.
Status make_tensor_map(const void* data, const TensorMapShape& shape, CUtensorMap* map);

}  // namespace fdpp
