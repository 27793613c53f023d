// How the norms walk through memory. Never included by an instruction-set unit.
#pragma once

#include "../common/check.h"
#include "../common/tensor.h"

namespace cvk {

// Below it, starting threads takes longer than the work.
constexpr int64_t kElementsWorthThreads = 32 * 1024;

inline bool channels_innermost(const Tensor5& t) { return t.size[1] > 1 && t.stride[1] == 1; }

// Whether the rows of a frame, or the frames, follow each other without a gap.
inline bool dense(const Tensor5& t, int dim) {
  return t.size[dim] == 1 || t.stride[dim] == t.size[dim + 1] * t.stride[dim + 1];
}

inline void merge(Tensor5& t, int dim) {
  t.size[dim + 1] *= t.size[dim];
  t.size[dim] = 1;
}

// Turns frames into one long row each, and these into one, where that is so in both tensors.
inline void merge_pixels(Tensor5& a, Tensor5& b) {
  if (!dense(a, 3) || !dense(b, 3)) return;
  merge(a, 3);
  merge(b, 3);
  // From here on a frame is a row, and the next one begins stride[2] behind it.
  auto follows = [](const Tensor5& t) { return t.size[2] == 1 || t.stride[2] == t.size[4] * t.stride[4]; };
  if (!follows(a) || !follows(b)) return;
  for (Tensor5* t : {&a, &b}) {
    t->size[4] *= t->size[2];
    t->size[2] = 1;
  }
}

inline Tensor5 merge_pixels(Tensor5 t) {
  Tensor5 same = t;
  merge_pixels(t, same);
  return t;
}

inline void check_in_and_out(const char* op, const Tensor5& x, const Tensor5& out) {
  const int64_t* n = x.size;
  check_tensor(op, "x", x);
  check_tensor(op, "out", out);
  check_sizes(op, "out", out, {n[0], n[1], n[2], n[3], n[4]});
}

}  // namespace cvk
