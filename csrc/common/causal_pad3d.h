// Arguments of causal padding of (B, C, T, H, W), common to every kernel of it: past frames in front, then a
// halo around every frame. A copy of bits.
#pragma once

#include "index.h"
#include "tensor.h"

namespace cvk {

struct CausalPad3d {
  Tensor5 x;             // the body (B, C, T, H, W)
  const Tensor5* state;  // (B, C, causal_padding, H, W), or null
  Tensor5 out;           // (B, C, causal_padding + T, top + H + bottom, left + W + right)
  int64_t causal_padding;
  int64_t top, bottom, left, right;
  TemporalMode temporal_mode;
  SpatialMode spatial_mode;
  int itemsize;         // 1, 2, 4 or 8 bytes
  bool body_is_in_out;  // `x` is the body of `out`: only the border is written
};

// The window of `storage` that its border encloses; throws where the border leaves no room.
Tensor5 body_of(const Tensor5& storage, int64_t causal_padding, const int64_t (&spatial_padding)[4],
                int itemsize);

// Throws std::invalid_argument for arguments that do not fit together.
void check_causal_pad3d(const CausalPad3d& pad);

}  // namespace cvk
