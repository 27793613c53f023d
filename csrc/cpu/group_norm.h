// Group norm, with SiLU and with the scale and shift of CogVideoX's spatial norm where they are given.
#pragma once

#include "../common/tensor.h"

namespace cvk {

enum class Isa : int;  // isa.h, which instruction-set units do not include

// y = (x - mean) / sqrt(variance + eps) * weight + bias over groups of channels, all frames and all pixels;
// then y * scale + shift, pixel by pixel; then SiLU. In float32, the statistics in double, rounded once to
// `dtype`.
struct GroupNorm {
  Tensor5 x, out;                // `out` may be `x`
  const Tensor5 *scale, *shift;  // (B, C, t, h, w), or null
  const float *weight, *bias;    // C of each, or null
  int64_t groups;
  double eps;
  bool silu;
  // Pixel (t, h, w) of x takes (t / repeat[0], h / repeat[1], w / repeat[2]) of scale and shift; with
  // `lone_first` frame 0 takes frame 0, and the others count from frame 1.
  bool lone_first;
  int64_t repeat[3];
  Dtype dtype;
};

static inline int64_t latent_frame(const GroupNorm& norm, int64_t t) {
  if (!norm.lone_first) return t / norm.repeat[0];
  return t == 0 ? 0 : 1 + (t - 1) / norm.repeat[0];
}

// With the statistics in: y = (x - mean) * factor + offset.
struct GroupNormPass {
  GroupNorm norm;
  int64_t channel_floats;     // C, rounded up to a cache line
  const float* coefficients;  // [B][3][channel_floats]: mean, factor, offset
  int64_t rows;               // of a modulated plane, that are written at once
  int64_t row_floats;         // of the factors in `scratch`; as many offsets are behind them
};

// What a unit offers. Its functions allocate nothing and start no thread. `sums` are [2][C]: the sums of each
// channel, then those of the squares; they are added to.
struct GroupNormKernels {
  // Channels next to each other: rows, counted over frames, all channels.
  void (*sum_rows)(const Tensor5& x, Dtype dtype, int64_t batch, int64_t row, int64_t rows, double* sums);
  void (*write_row)(const GroupNormPass& p, int64_t batch, int64_t row, float* scratch);
  // Any strides: one channel.
  void (*sum_plane)(const Tensor5& x, Dtype dtype, int64_t batch, int64_t channel, double* sums);
  void (*write_plane)(const GroupNormPass& p, int64_t batch, int64_t channel, float* scratch);
};

namespace portable {
extern const GroupNormKernels group_norm;
}
namespace avx2 {
extern const GroupNormKernels group_norm;
}
namespace avx512 {
extern const GroupNormKernels group_norm;
}

// Throws std::invalid_argument for arguments that do not fit together. The bits of the result depend neither
// on the number of threads nor on where `out` lies.
void group_norm(const GroupNorm& norm, Isa isa, int num_threads);

}  // namespace cvk
