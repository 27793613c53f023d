// What both Python modules unpack alike: tensors, and the arguments of the GPU's kernels.
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
#include "common/gpu_norms.h"
#include "common/implicit_conv.h"

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

// `added` is the residual and must outlive the result.
inline ImplicitConv conv_arguments(const Tensor& out, const Tensor& x, const Tensor& weight,
                                   std::optional<uintptr_t> bias, const std::optional<Tensor5>& added,
                                   const std::array<int64_t, 3>& stride,
                                   const std::array<int64_t, 3>& dilation,
                                   const std::array<int64_t, 3>& before, const std::array<int64_t, 3>& after,
                                   const std::string& dtype) {
  ImplicitConv conv;
  conv.x = view(x);
  conv.weight = view(weight);
  conv.bias = reinterpret_cast<const void*>(bias.value_or(0));
  conv.residual = pointer(added);
  conv.out = view(out);
  std::copy(stride.begin(), stride.end(), conv.stride);
  std::copy(dilation.begin(), dilation.end(), conv.dilation);
  std::copy(before.begin(), before.end(), conv.before);
  std::copy(after.begin(), after.end(), conv.after);
  conv.dtype = parse_dtype("causal_conv3d", dtype);
  return conv;
}

// `factor` and `offset` are scale and shift and must outlive the result.
inline GpuGroupNorm group_norm_arguments(const Tensor& out, const Tensor& x,
                                         const std::optional<Tensor5>& factor,
                                         const std::optional<Tensor5>& offset, const Address& weight,
                                         const Address& bias, const std::string& parameters, int64_t groups,
                                         double eps, bool silu, bool lone_first,
                                         const std::array<int64_t, 3>& repeat, const std::string& dtype,
                                         uintptr_t workspace, int64_t workspace_floats) {
  constexpr const char* op = "group_norm";
  GpuGroupNorm norm;
  norm.x = view(x);
  norm.out = view(out);
  norm.modulation = {pointer(factor), pointer(offset), lone_first, {repeat[0], repeat[1], repeat[2]}};
  norm.weight = pointer(op, "weight", weight);
  norm.bias = pointer(op, "bias", bias);
  norm.parameters = parse_dtype(op, parameters);
  norm.groups = groups;
  norm.eps = eps;
  norm.silu = silu;
  norm.dtype = parse_dtype(op, dtype);
  norm.workspace = reinterpret_cast<float*>(workspace);
  norm.workspace_floats = workspace_floats;
  return norm;
}

inline GpuRmsNorm rms_norm_arguments(const Tensor& out, const Tensor& x, uintptr_t weight,
                                     const Address& bias, double eps, bool silu, const std::string& dtype) {
  constexpr const char* op = "rms_norm";
  return {view(x), view(out), pointer(op, "weight", weight), pointer(op, "bias", bias),
          eps,     silu,      parse_dtype(op, dtype)};
}

}  // namespace cvk
