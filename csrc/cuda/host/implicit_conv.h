// Arguments of the implicit-GEMM convolutions of the GPU, and their checks.
#pragma once

#include <string>

#include "../../common/index.h"
#include "../../common/tensor.h"

namespace cvk {

// out = conv(x between zeros) + bias + residual, summed in float32, rounded once. Channels are innermost in
// every tensor. Frames in front that are no zeros, and a halo that is none, are part of `x`.
struct ImplicitConv {
  Tensor5 x;                // (B, Cin, T, H, W)
  Tensor5 weight;           // (Cout, Cin, kT, kH, kW)
  const void* bias;         // Cout elements, or null
  const Tensor5* residual;  // sizes of `out`, or null
  Tensor5 out;
  int64_t stride[3], dilation[3];  // time, height, width
  int64_t before[3], after[3];     // zeros in front of x and behind it
  Dtype dtype;                     // bfloat16 or float16
};

// Eight elements are the 16 bytes that a load takes; hence channels and strides in eights.
static constexpr int64_t kConvAlignment = 8;

// The farthest that a kernel may reach, dilation * (taps - 1): the hardware's im2col takes 5 signed bits for
// the corners of a 3-D window.
static constexpr int64_t kConvReach = 16;

// Throws std::invalid_argument for what no kernel computes.
void check_implicit_conv(const ImplicitConv& conv);

// Sizes of x, weight and out, for messages.
std::string describe(const ImplicitConv& conv);

// Gives dimensions of size 1, whose strides mean nothing, the stride of a dense tensor (channels innermost).
Tensor5 with_dense_strides(Tensor5 tensor);

// Whether the pixels of `tensor` follow each other within a batch entry, `tensor.stride[4]` apart.
bool pixels_are_rows(const Tensor5& tensor);

}  // namespace cvk
