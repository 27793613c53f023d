// Causal padding on a GPU: one launch, over the border alone where the frames are there already.
#pragma once

#include "../common/causal_pad3d.h"
#include "launch.h"

namespace cvk {

// Throws std::invalid_argument for arguments that do not fit together, std::runtime_error where CUDA refuses.
void causal_pad3d(const CausalPad3d& pad, const Target& target);

}  // namespace cvk
