// Causal padding on the CPU.
#pragma once

#include "../common/causal_pad3d.h"

namespace cvk {

// Throws std::invalid_argument for arguments that do not fit together.
void causal_pad3d(const CausalPad3d& pad, int num_threads);

}  // namespace cvk
