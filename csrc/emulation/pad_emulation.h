// The CUDA padding kernels on the host: the same plan, and every thread's own code, one thread after another.
// For tests of their index arithmetic where there is no GPU.
#pragma once

#include "../common/causal_pad3d.h"

namespace cvk {

struct PadEmulation {
  bool transposes;
  int item_bytes;
  int64_t blocks;
  int64_t written;  // items, each time one is written
};

PadEmulation emulate_pad(const CausalPad3d& pad);

}  // namespace cvk
