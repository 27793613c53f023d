// How the norms walk through memory. Never included by an instruction-set unit.
#pragma once

#include <utility>

#include "../common/tensor.h"

namespace cvk {

// Below it, starting threads takes longer than the work.
constexpr int64_t kElementsWorthThreads = 32 * 1024;

inline bool channels_innermost(const Tensor5& t) { return t.size[1] > 1 && t.stride[1] == 1; }

// Makes one long row of dimension `dim` and the one behind it, where nothing lies between in both tensors.
inline void merge_into_next(Tensor5& a, Tensor5& b, int dim) {
  auto dense = [dim](const Tensor5& t) {
    return t.size[dim] == 1 || t.stride[dim] == t.size[dim + 1] * t.stride[dim + 1];
  };
  if (!dense(a) || !dense(b)) return;
  for (Tensor5* t : {&a, &b}) {
    t->size[dim + 1] *= t->size[dim];
    t->size[dim] = 1;
  }
}

// Turns frames into one long row each, and these into one, where that is so in both tensors.
inline void merge_pixels(Tensor5& a, Tensor5& b) {
  merge_into_next(a, b, 3);
  if (a.size[3] > 1) return;
  for (Tensor5* t : {&a, &b}) {  // a frame is a row: it takes the place of the height, next to the rows
    std::swap(t->size[2], t->size[3]);
    std::swap(t->stride[2], t->stride[3]);
  }
  merge_into_next(a, b, 3);
}

inline Tensor5 merge_pixels(Tensor5 t) {
  Tensor5 same = t;
  merge_pixels(t, same);
  return t;
}

}  // namespace cvk
