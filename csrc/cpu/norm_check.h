// Argument checks of the norms, common to every kernel of them.
#pragma once

#include "../common/tensor.h"

namespace cvk {

void check_in_and_out(const char* op, const Tensor5& x, const Tensor5& out);

void check_eps(const char* op, double eps);

// What is repeated to the frames and pixels of x, and how often: see GroupNorm.
struct Modulation {
  const Tensor5 *scale, *shift;  // (B, C, t, h, w), or null
  bool lone_first;
  int64_t repeat[3];  // frames, rows, columns
};

// Throws std::invalid_argument for arguments that do not fit together.
void check_group_norm(const char* op, const Tensor5& x, const Tensor5& out, int64_t groups, double eps,
                      const Modulation& modulation);

}  // namespace cvk
