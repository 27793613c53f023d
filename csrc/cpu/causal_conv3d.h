// Arguments of the causal 3-D convolution, common to every algorithm.
#pragma once

#include "../common/index.h"
#include "../common/tensor.h"

namespace cvk {

// out = conv(padded x) + bias + residual, in float32, rounded once to `dtype`.
//
// In time, dilation * (kT - 1) past frames are put in front (none under "valid"): the state, or the
// first frame again, or zeros. In space every side has its own padding.
struct CausalConv3d {
  Tensor5 x;                // (B, Cin, T, H, W)
  Tensor5 weight;           // (Cout, Cin, kT, kH, kW)
  const void* bias;         // Cout elements, or null
  const Tensor5* state;     // (B, Cin, past frames, H, W), or null
  const Tensor5* residual;  // sizes of `out`, or null
  Tensor5 out;
  int64_t stride[3], dilation[3];    // time, height, width
  int64_t top, bottom, left, right;  // padding in space
  TemporalMode temporal_mode;
  SpatialMode spatial_mode;
  Dtype dtype, weight_dtype;  // of all but the weight, and of the weight
};

static inline int64_t past_frames(const CausalConv3d& conv) {
  return conv.temporal_mode == TemporalMode::valid ? 0 : conv.dilation[0] * (conv.weight.size[2] - 1);
}

// Throws std::invalid_argument for arguments that do not fit together.
void check_causal_conv3d(const CausalConv3d& conv);

}  // namespace cvk
