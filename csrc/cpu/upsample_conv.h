// Nearest-neighbour upsampling by two in time, space or both, then a causal convolution of stride 1: as
// several convolutions of the small frames, each with folded weights and every second row and column of the
// output.
#pragma once

#include "causal_conv3d_winograd.h"
#include "isa.h"

namespace cvk {

// Along a doubled axis of space even outputs see the inputs (i - 1, i) with the weights (w0, w1 + w2), odd
// ones (i, i + 1) with (w0 + w1, w2).
struct UpsampleConv {
  CausalConv3d conv;  // of the small frames; its `out` is that of all phases together
  Doubling time;      // of frames that a kernel sees together
  bool space;
};

// `packed` holds the kernels of even and odd rows, in each those of even and odd columns, one after another,
// written by winograd_pack (in the slices that Doubling tells): 3x3 with the last row or column zero for even
// outputs, the first one for odd ones. Throws std::invalid_argument for arguments that do not fit together.
void upsample_conv_winograd(const UpsampleConv& upsample, const float* packed, Isa isa, int num_threads);

}  // namespace cvk
