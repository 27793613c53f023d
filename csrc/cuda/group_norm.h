// Group norm on a GPU: pieces of statistics, their merge, and the pass that normalises and writes.
#pragma once

#include "../common/gpu_norms.h"
#include "launch.h"

namespace cvk {

// Throws std::invalid_argument for arguments that do not fit together, std::runtime_error where CUDA refuses.
void group_norm(const GpuGroupNorm& norm, const Target& target);

}  // namespace cvk
