// How the CUDA kernels carry out a padding: the walk, the width of its items, the number of blocks.
#pragma once

#include "../../common/causal_pad3d.h"
#include "pad_walk.h"

namespace cvk {

struct PadPlan {
  bool transposes;  // through tiles; else items in the order of memory
  int item_bytes;   // 1, 2, 4, 8 or 16
  PadWalk walk;
  PadTiles tiles;
};

// Checks the arguments; throws std::invalid_argument, also for a frame of 2^31 items or more.
PadPlan plan_pad(const CausalPad3d& pad);

}  // namespace cvk
