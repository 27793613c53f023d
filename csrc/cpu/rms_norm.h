// RMS norm over channels, with SiLU.
#pragma once

#include "../common/tensor.h"

namespace cvk {

enum class Isa : int;  // isa.h, which instruction-set units do not include

// The least norm that a pixel is divided by, as in torch.nn.functional.normalize.
constexpr double kLeastNorm = 1e-12;

// n = x / max(sqrt(|x|^2 + C * eps), kLeastNorm) over the channels of a pixel, rounded to `dtype`; y = n *
// sqrt(C) * weight + bias; then SiLU. The sum of squares in double, the rest in float32, rounded once more to
// `dtype`.
struct RmsNorm {
  Tensor5 x, out;              // `out` may be `x`
  const float *weight, *bias;  // C of each; bias may be null
  double eps;                  // added to the mean of the squares
  bool silu;
  Dtype dtype;
};

// Pixels of one row whose sums of squares are kept at a time.
constexpr int64_t kMostPixels = 256;

struct RmsNormPass {
  RmsNorm norm;
  const float *factor, *offset;  // C of each, rounded up to a cache line
  double added;                  // to the sum of the squares
  int64_t pixels;                // of a block, at most kMostPixels, a multiple of kCacheLineFloats
};

// What a unit offers. Its functions allocate nothing and start no thread.
struct RmsNormKernels {
  // Channels next to each other: a row of pixels.
  void (*write_row)(const RmsNormPass& p, int64_t batch, int64_t row);
  // Any strides: a block of pixels of a row.
  void (*write_block)(const RmsNormPass& p, int64_t batch, int64_t row, int64_t block);
};

namespace portable {
extern const RmsNormKernels rms_norm;
}
namespace avx2 {
extern const RmsNormKernels rms_norm;
}
namespace avx512 {
extern const RmsNormKernels rms_norm;
}

// Throws std::invalid_argument for arguments that do not fit together. The bits of the result do not depend
// on the number of threads.
void rms_norm(const RmsNorm& norm, Isa isa, int num_threads);

}  // namespace cvk
