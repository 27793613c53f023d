// What `_C_cuda` and its host emulation bind alike: a convolution's arguments, and what it reads of time.
#pragma once

#include "bindings.h"
#include "cuda/host/implicit_conv.h"

namespace cvk {

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

void bind_time_taps(pybind11::module_& m);

}  // namespace cvk
