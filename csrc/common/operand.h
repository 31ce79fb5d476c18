// How Python describes a tensor to the extension: no torch headers, only addresses, sizes and strides.
#pragma once

#include <cstdint>

namespace cxrl {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// B rows of `row_size` elements. Within a row the elements are dense: in logical (C, S) order when `channels`
// is 0, else in (S, C) order, which is what channels_last looks like. Rows are `row_stride` elements apart
// (0: the same row for all).
struct Operand {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;
  int64_t channels = 0;

  explicit operator bool() const { return data != nullptr; }
};

}  // namespace cxrl
