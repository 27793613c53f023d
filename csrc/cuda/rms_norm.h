// Wan's RMS norm on a GPU: one launch that reads x once.
#pragma once

#include "../common/gpu_norms.h"
#include "launch.h"

namespace cvk {

// Throws std::invalid_argument for arguments that do not fit together, std::runtime_error where CUDA refuses.
void rms_norm(const GpuRmsNorm& norm, const Target& target);

}  // namespace cvk
