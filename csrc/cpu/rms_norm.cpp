#include "rms_norm.h"

#include <algorithm>
#include <cmath>

#include "../common/check.h"
#include "isa.h"
#include "norm_check.h"
#include "norm_layout.h"
#include "parallel.h"
#include "scratch.h"

namespace cvk {

namespace {

constexpr const char* kOp = "rms_norm";
// A block is read twice, channel by channel: 128 KiB stay in a second-level cache.
constexpr int64_t kBlockFloats = 32 * 1024;

}  // namespace

void rms_norm(const RmsNorm& norm, Isa isa, int num_threads) {
  check_threads(kOp, num_threads);
  check_in_and_out(kOp, norm.x, norm.out);
  if (element_count(norm.x) == 0) return;
  require(norm.weight != nullptr, kOp, "weight has a null address");
  check_eps(kOp, norm.eps);
  if (element_count(norm.x) < kElementsWorthThreads) num_threads = 1;
  const RmsNormKernels& kernels = CVK_TABLE_OF(isa, rms_norm);

  const int64_t channels = norm.x.size[1], channel_floats = round_up_to_line(channels);
  const Scratch parameters(2 * channel_floats);
  float *factor = parameters.data(), *offset = factor + channel_floats;
  std::fill_n(factor, 2 * channel_floats, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    factor[c] = static_cast<float>(norm.weight[c] * std::sqrt(static_cast<double>(channels)));
    offset[c] = norm.bias ? norm.bias[c] : 0.0f;
  }
  RmsNormPass p{norm, factor, offset, static_cast<double>(channels) * norm.eps, 0};

  if (channels_innermost(norm.x) && channels_innermost(norm.out)) {
    const int64_t rows = norm.x.size[2] * norm.x.size[3];
    parallel_for(norm.x.size[0] * rows, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) kernels.write_row(p, i / rows, i % rows);
    });
    return;
  }
  merge_pixels(p.norm.x, p.norm.out);
  p.pixels = std::min(std::max(kBlockFloats / channels / kCacheLineFloats, int64_t{1}) * kCacheLineFloats,
                      kMostPixels);
  const int64_t blocks = ceil_div(p.norm.x.size[4], p.pixels), rows = p.norm.x.size[2] * p.norm.x.size[3];
  parallel_for(norm.x.size[0] * rows * blocks, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      kernels.write_block(p, i / blocks / rows, i / blocks % rows, i % blocks);
  });
}

}  // namespace cvk
