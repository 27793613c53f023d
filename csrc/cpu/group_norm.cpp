#include "group_norm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../common/check.h"
#include "isa.h"
#include "norm_check.h"
#include "norm_layout.h"
#include "parallel.h"
#include "scratch.h"

namespace cvk {

namespace {

constexpr const char* kOp = "group_norm";
// Rows are summed in as many pieces as there may be threads to share them; few enough that adding up the
// pieces costs little. Their number depends on the sizes alone, and so do the bits.
constexpr int64_t kMostPieces = 64, kPieceElements = 32 * 1024;
// Factors of so many columns of a plane, and as many offsets, take half of a first-level cache.
constexpr int64_t kRunFloats = 2 * 1024;

// The sums of every channel of every sample, in pieces: [pieces][B][2][C].
struct Partial {
  int64_t pieces;
  std::vector<double> sums;
};

Partial sum_channels(const Tensor5& x, Dtype dtype, const GroupNormKernels& kernels, int num_threads) {
  const int64_t batch = x.size[0], channels = x.size[1], rows = x.size[2] * x.size[3];
  const int64_t sample = 2 * channels;
  if (!channels_innermost(x)) {
    const Tensor5 merged = merge_pixels(x);
    Partial partial{1, std::vector<double>(batch * sample)};
    parallel_for(batch * channels, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        kernels.sum_plane(merged, dtype, i / channels, i % channels,
                          partial.sums.data() + i / channels * sample);
    });
    return partial;
  }
  const int64_t wanted = std::min(channels * rows * x.size[4] / kPieceElements, kMostPieces);
  const int64_t pieces = std::max(std::min(wanted, rows), int64_t{1});
  Partial partial{pieces, std::vector<double>(pieces * batch * sample)};
  parallel_for(pieces * batch, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t piece = i / batch, first = piece * rows / pieces, next = (piece + 1) * rows / pieces;
      kernels.sum_rows(x, dtype, i % batch, first, next - first, partial.sums.data() + i * sample);
    }
  });
  return partial;
}

// What a pass over sample `b` needs: mean, factor and offset of each channel.
void finish_statistics(const GroupNorm& norm, const Partial& partial, int64_t b, int64_t channel_floats,
                       float* coefficients) {
  const int64_t batch = norm.x.size[0], channels = norm.x.size[1], width = channels / norm.groups;
  const double count = static_cast<double>(width * norm.x.size[2] * norm.x.size[3] * norm.x.size[4]);
  for (int64_t first = 0; first < channels; first += width) {
    double sum = 0, square = 0;
    for (int64_t piece = 0; piece < partial.pieces; ++piece) {
      const double* sums = partial.sums.data() + (piece * batch + b) * 2 * channels;
      for (int64_t c = first; c < first + width; ++c) {
        sum += sums[c];
        square += sums[channels + c];
      }
    }
    const double mean = sum / count, variance = square / count - mean * mean;
    // A NaN is kept.
    const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + norm.eps);
    const float rounded = static_cast<float>(mean);
    for (int64_t c = first; c < first + width; ++c) {
      const double factor = norm.weight ? rstd * norm.weight[c] : rstd;
      coefficients[c] = rounded;
      coefficients[channel_floats + c] = static_cast<float>(factor);
      // What rounding the mean lost goes into the offset.
      coefficients[2 * channel_floats + c] =
          static_cast<float>((rounded - mean) * factor + (norm.bias ? norm.bias[c] : 0));
    }
  }
}

// How many rows of a plane are written at once: a multiple of those that share their factors, where rows lie
// one behind the other.
int64_t rows_at_once(const GroupNorm& norm) {
  const int64_t width = norm.x.size[4], shared = norm.repeat[1] * width;
  auto dense = [width](const Tensor5& t) { return t.stride[3] == width * t.stride[4]; };
  if (!dense(norm.x) || !dense(norm.out) || shared > kRunFloats) return 1;
  return kRunFloats / shared * norm.repeat[1];
}

}  // namespace

void group_norm(const GroupNorm& norm, Isa isa, int num_threads) {
  check_threads(kOp, num_threads);
  const int64_t* repeat = norm.repeat;
  check_group_norm(kOp, norm.x, norm.out, norm.groups, norm.eps,
                   {norm.scale, norm.shift, norm.lone_first, {repeat[0], repeat[1], repeat[2]}});
  const int64_t batch = norm.x.size[0], channels = norm.x.size[1];
  if (element_count(norm.x) == 0) return;
  if (element_count(norm.x) < kElementsWorthThreads) num_threads = 1;
  const GroupNormKernels& kernels = CVK_TABLE_OF(isa, group_norm);

  const Partial partial = sum_channels(norm.x, norm.dtype, kernels, num_threads);
  GroupNormPass p{norm, round_up_to_line(channels), nullptr, 1, 0};
  const Scratch coefficients(batch * 3 * p.channel_floats);
  std::fill_n(coefficients.data(), batch * 3 * p.channel_floats, 0.0f);
  for (int64_t b = 0; b < batch; ++b)
    finish_statistics(norm, partial, b, p.channel_floats, coefficients.data() + b * 3 * p.channel_floats);
  p.coefficients = coefficients.data();

  const bool by_rows = channels_innermost(norm.x) && channels_innermost(norm.out);
  if (!by_rows && !norm.scale) merge_pixels(p.norm.x, p.norm.out);
  p.rows = rows_at_once(norm);
  p.row_floats = round_up_to_line(by_rows ? channels : p.rows * norm.x.size[4]);
  // Factors and offsets of one pixel, or of some rows.
  const int64_t per_thread = norm.scale ? 2 * p.row_floats : 0;
  const Scratch scratch(per_thread * num_threads);
  const int64_t lines = by_rows ? norm.x.size[2] * norm.x.size[3] : channels;
  const auto write = by_rows ? kernels.write_row : kernels.write_plane;
  parallel_for(batch * lines, num_threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i)
      write(p, i / lines, i % lines, scratch.data() + thread * per_thread);
  });
}

}  // namespace cvk
