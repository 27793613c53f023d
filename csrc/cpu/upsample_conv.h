// Nearest-neighbour upsampling by two in time, space or both, then a causal convolution of stride 1: as
// several convolutions of the small frames, each with folded weights and every second frame, row or column of
// the output.
#pragma once

#include "causal_conv3d.h"
#include "isa.h"

namespace cvk {

// Along a doubled axis output i of parity p sees the inputs (i - 1, i) if p is 0 and (i, i + 1) if it is 1,
// in time (i - 1, i) both times; the weights are (w0, w1 + w2) or (w0 + w1, w2). Frames that are doubled and
// not seen together (a kernel of one frame) are no matter of this.
struct UpsampleConv {
  CausalConv3d conv;  // of the small frames, with a folded kernel; its `out` is that of all phases together
  bool time, space;   // which axes are doubled
  bool first_single;  // the first output frame stands alone, the others come in pairs
};

// `packed` holds a kernel after the other, packed by winograd_pack: those of time (first and second frame of
// a pair), in each those of even and odd rows, in each those of even and odd columns; in space the kernel is
// 3x3 with the last row or column zero for even outputs, the first one for odd ones. The time axis of a
// kernel that is not doubled has all its frames, else two. Throws std::invalid_argument for arguments that do
// not fit together.
void upsample_conv_winograd(const UpsampleConv& upsample, const float* packed, Isa isa, int num_threads);

}  // namespace cvk
