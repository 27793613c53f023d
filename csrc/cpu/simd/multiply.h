// The micro-kernel of every convolution: a few rows by two vectors of output channels, in registers.
// For instruction-set units only (see vec.h).
#pragma once

#include "vec.h"

namespace cvk {
namespace {

constexpr int64_t kBlock = 2 * kLanes;  // output channels that are packed next to each other

// acc[row][channel] += the sum over k of rows[row * stride + k] * weights[k][kBlock], in the order of k.
// Meanwhile `depth` cache lines from `ahead` on are brought near.
template <int kRows, int kVectors>
inline void multiply(Vec (&acc)[kRows][kVectors], const float* rows, int64_t stride, const float* weights,
                     int64_t depth, const float* ahead) {
  // A pointer for every third row: the two after it are reached by once and twice the stride, in an address.
  constexpr int kPointers = (kRows + 2) / 3;
  const float* base[kPointers];
  for (int i = 0; i < kPointers; ++i) base[i] = rows + 3 * i * stride;
  for (int64_t k = 0; k < depth; ++k, weights += kBlock, ahead += kLineFloats) {
    prefetch(ahead);
    Vec w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v)
        acc[r][v] = multiply_add(w[v], base[r / 3][r % 3 * stride], acc[r][v]);
    for (int i = 0; i < kPointers; ++i) ++base[i];
  }
}

}  // namespace
}  // namespace cvk
