// What the Python modules unpack alike: tensors, and the arguments of padding.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "common/causal_pad3d.h"
#include "common/check.h"

namespace cvk {

// (address, sizes, strides in elements)
using Tensor = std::tuple<uintptr_t, std::array<int64_t, 5>, std::array<int64_t, 5>>;

inline Tensor5 view(const Tensor& t) {
  const auto& [address, sizes, strides] = t;
  Tensor5 tensor{reinterpret_cast<void*>(address), {}, {}};
  std::copy(sizes.begin(), sizes.end(), tensor.size);
  std::copy(strides.begin(), strides.end(), tensor.stride);
  return tensor;
}

inline std::optional<Tensor5> view(const std::optional<Tensor>& t) {
  if (!t) return std::nullopt;
  return view(*t);
}

using Address = std::optional<uintptr_t>;

inline const void* pointer(const char* op, const char* name, const Address& address) {
  require(!address || *address != 0, op,
          std::string(name) + " has a null address, expected one, or None for no " + name);
  return reinterpret_cast<const void*>(address.value_or(0));
}

inline const Tensor5* pointer(const std::optional<Tensor5>& t) { return t ? &*t : nullptr; }

// Without `x`, the body of `out` is there already. `past` is the state and must outlive the result.
inline CausalPad3d pad_arguments(const Tensor& out, const std::optional<Tensor>& x,
                                 const std::optional<Tensor5>& past, int64_t causal_padding,
                                 const std::array<int64_t, 4>& spatial_padding,
                                 const std::string& temporal_mode, const std::string& spatial_mode,
                                 int itemsize) {
  const auto [top, bottom, left, right] = spatial_padding;
  CausalPad3d pad;
  pad.out = view(out);
  pad.body_is_in_out = !x;
  pad.x = x ? view(*x) : body_of(pad.out, causal_padding, {top, bottom, left, right}, itemsize);
  pad.state = pointer(past);
  pad.causal_padding = causal_padding;
  pad.top = top;
  pad.bottom = bottom;
  pad.left = left;
  pad.right = right;
  pad.temporal_mode = parse_temporal_mode("causal_pad3d", temporal_mode, false);
  pad.spatial_mode = parse_spatial_mode("causal_pad3d", spatial_mode, false);
  pad.itemsize = itemsize;
  return pad;
}

}  // namespace cvk
