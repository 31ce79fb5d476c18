// Reads the descriptions of tensors that cxrl/ops/_cpp.py writes.
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"

namespace cxrl {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, dtype, row stride, channels); None for an absent tensor.
inline Operand operand(const pybind11::object& description) {
  if (description.is_none()) return {};
  const auto t = pybind11::reinterpret_borrow<pybind11::tuple>(description);
  Operand result;
  result.data = at<char>(t[0].cast<Address>());
  result.dtype = static_cast<DType>(t[1].cast<int>());
  result.row_stride = t[2].cast<int64_t>();
  result.channels = t[3].cast<int64_t>();
  return result;
}

// (address, dtype, batch stride, head stride, row stride), or None.
inline AttentionView attention_view(const pybind11::object& description) {
  if (description.is_none()) return {};
  const auto t = pybind11::reinterpret_borrow<pybind11::tuple>(description);
  AttentionView view;
  view.data = at<char>(t[0].cast<Address>());
  view.dtype = static_cast<DType>(t[1].cast<int>());
  view.batch_stride = t[2].cast<int64_t>();
  view.head_stride = t[3].cast<int64_t>();
  view.row_stride = t[4].cast<int64_t>();
  return view;
}

// batch, heads, queries, keys, extra keys, dim, rows of k.
inline AttentionShape attention_shape(const pybind11::tuple& shape) {
  const auto size = [&](int i) { return shape[static_cast<size_t>(i)].cast<int64_t>(); };
  return {size(0), size(1), size(2), size(3), size(4), size(5), size(6)};
}

// inputs: q, k, v, extra_k, extra_v.
inline AttentionInputs attention_inputs(const pybind11::tuple& inputs, Address kv_index, float scale,
                                        const pybind11::tuple& shape) {
  AttentionInputs in;
  in.q = attention_view(inputs[0]);
  in.k = attention_view(inputs[1]);
  in.v = attention_view(inputs[2]);
  in.extra_k = attention_view(inputs[3]);
  in.extra_v = attention_view(inputs[4]);
  in.kv_index = at<int64_t>(kv_index);
  in.scale = scale;
  in.shape = attention_shape(shape);
  return in;
}

}  // namespace cxrl
