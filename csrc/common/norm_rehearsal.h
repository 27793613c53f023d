// The CUDA norms on the host: the same plan, and every thread's own code, one thread after another. For tests
// of their index arithmetic, and of their sums, where there is no GPU.
#pragma once

#include "gpu_norms.h"

namespace cvk {

struct NormRehearsal {
  bool words_read, words_written;  // 16 bytes at a time in the statistics, in the pass that writes
  int64_t blocks;                  // of all launches
  int64_t written;                 // elements, each time one is written
};

NormRehearsal rehearse_group_norm(const GpuGroupNorm& norm);
NormRehearsal rehearse_rms_norm(const GpuRmsNorm& norm);

}  // namespace cvk
