// The convolution on a GPU, as an implicit GEMM on the tensor cores.
#pragma once

#include "host/implicit_conv.h"
#include "launch.h"

namespace cvk {

// Chooses the kernels for the device's generation. Throws std::invalid_argument for what they do not compute,
// std::runtime_error where CUDA refuses or the build has no code for the device.
void causal_conv3d(const ImplicitConv& conv, const Target& target);

// sm_90a: TMA's im2col, wgmma, persistent blocks; tile `kTile` of kConvTiles.
template <int kTile>
void conv_sm90(const ImplicitConv& conv, const Target& target);

// sm_80 and the later 8.x: cp.async and mma.
void conv_sm80(const ImplicitConv& conv, const Target& target);

}  // namespace cvk
