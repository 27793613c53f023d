// What every thread of the CUDA RMS norm does: the items of its pixels are loaded, squared and summed;
// threads that share a pixel add up their sums; the items, still in registers, are normalised and written.
//
// A pixel's channels come in units: items of neighbouring channels ("across"), else single channels of a
// group of neighbouring pixels ("along"). Units that are too many for registers, or no words in memory, are
// read again, from a cache (kKept = 0).
#pragma once

#include "norm_walk.h"

namespace cvk {

// The least norm that a pixel is divided by, as in torch.nn.functional.normalize.
static constexpr float kLeastPixelNorm = 1e-12f;

// Threads are `lanes` by rows, powers of two. Across: lanes share a pixel, rows take pixels. Along: rows
// share a group of pixels, lanes take groups.
struct RmsNormWalk {
  NormTensor x, out;
  NormAxes axes;
  const void *weight, *bias;  // elements of x's type; bias may be null
  uint32_t channels, pixels;
  uint32_t units;  // of a pixel
  uint32_t items;  // pixels, or groups of them
  uint32_t log_lanes, blocks;
  FastDivide by_blocks;  // blocks of a batch entry
  float root;            // of the number of channels
  float added;           // to the sum of squares
  bool silu;
};

// What a kernel is compiled for: `kKept` units of `kPixels` items of pixels in registers.
template <class Kind_, int kKept_, int kPixels_>
struct RmsNormShape {
  using Kind = Kind_;
  static constexpr int kKept = kKept_, kPixels = kPixels_;
  static constexpr int kSums = Kind::kAcross ? 1 : Kind::kItem;  // of an item's pixels
  static_assert(Kind::kAcross || kPixels == 1,
                "sums along are added up in shared memory, one group a thread");
};

// How many items of pixels a thread has where it keeps so many units: about four loads under way.
static constexpr int rms_norm_pixels(bool across, int kept) {
  return across && kept > 0 && kept < 4 ? 4 / kept : 1;
}

struct RmsNormPlace {
  int64_t b;
  uint32_t item, next;  // the first, and how far it is to the next
  uint32_t unit, step;  // the same of its units
};

template <class Shape>
CVK_HD static inline RmsNormPlace rms_norm_place(const RmsNormWalk& walk, uint32_t block, uint32_t thread) {
  using Kind = typename Shape::Kind;
  const uint32_t lanes = 1u << walk.log_lanes, rows = kNormThreads >> walk.log_lanes;
  const uint32_t lane = thread & (lanes - 1), row = thread >> walk.log_lanes;
  const uint32_t takers = Kind::kAcross ? rows : lanes;
  RmsNormPlace at;
  const uint32_t b = walk.by_blocks(block);
  at.b = b;
  at.item = (block - b * walk.by_blocks.divisor) * takers * Shape::kPixels + (Kind::kAcross ? row : lane);
  at.next = takers;
  at.unit = Kind::kAcross ? lane : row;
  at.step = Kind::kAcross ? lanes : rows;
  return at;
}

template <class Kind>
CVK_HD static inline uint32_t channel_of(uint32_t unit) {
  return Kind::kAcross ? unit * Kind::kItem : unit;
}

template <class Kind>
CVK_HD static inline int unit_size(const RmsNormWalk& walk, uint32_t item, uint32_t unit) {
  if (item >= walk.items || unit >= walk.units) return 0;
  return item_size<Kind>(item, channel_of<Kind>(unit), walk.channels, walk.pixels);
}

template <class Kind>
CVK_HD static inline NormItem unit_load(const RmsNormWalk& walk, int64_t b, uint32_t item, uint32_t unit) {
  const int size = unit_size<Kind>(walk, item, unit);
  if (size == 0) return NormItem{};
  return norm_load<Kind>(walk.x, walk.axes, norm_base<Kind>(walk.x, b, channel_of<Kind>(unit)), item, size);
}

template <class Shape>
CVK_HD static inline void add_squares(const NormItem& item, float (&sums)[Shape::kSums]) {
  CVK_UNROLL
  for (int i = 0; i < Shape::Kind::kItem; ++i) {
    const float x = element<typename Shape::Kind>(item, i);
    sums[i % Shape::kSums] += x * x;
  }
}

template <class Shape>
struct RmsNormItems {
  NormItem kept[Shape::kPixels][Shape::kKept > 0 ? Shape::kKept : 1];
  float sums[Shape::kPixels][Shape::kSums];
};

// First half: the thread's items, and its part of the sums of squares.
template <class Shape>
CVK_HD static inline void rms_norm_load(const RmsNormWalk& walk, uint32_t block, uint32_t thread,
                                        RmsNormItems<Shape>& own) {
  using Kind = typename Shape::Kind;
  const RmsNormPlace at = rms_norm_place<Shape>(walk, block, thread);
  CVK_UNROLL
  for (int p = 0; p < Shape::kPixels; ++p) {
    CVK_UNROLL
    for (int k = 0; k < Shape::kKept; ++k)
      own.kept[p][k] = unit_load<Kind>(walk, at.b, at.item + p * at.next, at.unit + k * at.step);
  }
  CVK_UNROLL
  for (int p = 0; p < Shape::kPixels; ++p) {
    CVK_UNROLL
    for (int i = 0; i < Shape::kSums; ++i) own.sums[p][i] = 0;
    if constexpr (Shape::kKept > 0) {
      CVK_UNROLL
      for (int k = 0; k < Shape::kKept; ++k) add_squares<Shape>(own.kept[p][k], own.sums[p]);
    } else {
      for (uint32_t unit = at.unit; unit < walk.units; unit += at.step)
        add_squares<Shape>(unit_load<Kind>(walk, at.b, at.item, unit), own.sums[p]);
    }
  }
}

// Along, a step of the sum over rows in shared memory, [kItem][threads].
template <class Shape>
CVK_HD static inline void rms_norm_fold(const RmsNormWalk& walk, uint32_t half, uint32_t thread,
                                        float* sums) {
  if (thread >> walk.log_lanes >= half) return;
  CVK_UNROLL
  for (int i = 0; i < Shape::kSums; ++i)
    sums[i * kNormThreads + thread] += sums[i * kNormThreads + thread + (half << walk.log_lanes)];
}

// Weight or bias of an item's channels; one number where it is pixels of a channel.
template <class Kind>
CVK_HD static inline NormItem parameters_from(const void* parameters, uint32_t channel, uint32_t left) {
  const typename Kind::Element* from = static_cast<const typename Kind::Element*>(parameters) + channel;
  if constexpr (!Kind::kAcross) {
    return NormItem{{*from}};
  } else if constexpr (Kind::kWords) {
    return *reinterpret_cast<const NormItem*>(from);
  } else {
    NormItem result{};
    CVK_UNROLL
    for (int i = 0; i < Kind::kItem; ++i) {
      const uint32_t bits = static_cast<uint32_t>(i) < left ? from[i] : 0;
      if constexpr (Kind::kItem == 4)
        result.word[i] = bits;
      else
        result.word[i / 2] |= bits << 16 * (i % 2);
    }
    return result;
  }
}

template <class Kind>
struct RmsNormParameters {
  NormItem weight, bias;
};

template <class Kind>
CVK_HD static inline RmsNormParameters<Kind> parameters_of(const RmsNormWalk& walk, uint32_t unit) {
  if (unit >= walk.units) return {};
  const uint32_t channel = channel_of<Kind>(unit), left = walk.channels - channel;
  return {parameters_from<Kind>(walk.weight, channel, left),
          walk.bias ? parameters_from<Kind>(walk.bias, channel, left) : NormItem{}};
}

// A pixel's norm and its inverse, or those of a group of pixels.
template <class Shape>
struct RmsNorms {
  float norm[Shape::kSums], inverse[Shape::kSums];
};

template <class Shape>
CVK_HD static inline RmsNorms<Shape> norms_of(const float (&sums)[Shape::kSums], float added) {
  RmsNorms<Shape> result;
  CVK_UNROLL
  for (int i = 0; i < Shape::kSums; ++i) {
    result.norm[i] = sqrtf(sums[i] + added);
    if (result.norm[i] < kLeastPixelNorm) result.norm[i] = kLeastPixelNorm;  // which a NaN is not
    result.inverse[i] = 1.0f / result.norm[i];
  }
  return result;
}

// n = x / norm, rounded as the model does; silu(n * root * weight + bias). Returns how many elements it
// wrote.
template <class Shape>
CVK_HD static inline int rms_norm_store(const RmsNormWalk& walk, int64_t b, uint32_t item, uint32_t unit,
                                        const NormItem& x, const RmsNorms<Shape>& of_item,
                                        const RmsNormParameters<typename Shape::Kind>& parameters) {
  using Kind = typename Shape::Kind;
  const int size = unit_size<Kind>(walk, item, unit);
  if (size == 0) return 0;
  const auto& [weight, bias] = parameters;
  float y[Kind::kItem];
  CVK_UNROLL
  for (int i = 0; i < Kind::kItem; ++i) {
    const int c = Kind::kAcross ? i : 0, p = i % Shape::kSums;
    y[i] = element<Kind>(x, i);
    if constexpr (Kind::kDtype == Dtype::float32)
      y[i] /= of_item.norm[p];
    else  // what the inverse loses is far below the digits that are kept
      y[i] = rounded<Kind::kDtype>(y[i] * of_item.inverse[p]);
    y[i] = y[i] * walk.root * element<Kind>(weight, c) + element<Kind>(bias, c);
  }
  if (walk.silu) {
    CVK_UNROLL
    for (int i = 0; i < Kind::kItem; ++i) y[i] = silu_of<Kind::kDtype>(y[i]);
  }
  norm_store<Kind>(walk.out, walk.axes, norm_base<Kind>(walk.out, b, channel_of<Kind>(unit)), item, size,
                   item_of<Kind>(y));
  return size;
}

// Second half, with the sums over all channels. Returns how many elements the thread wrote.
template <class Shape>
CVK_HD static inline int rms_norm_write(const RmsNormWalk& walk, uint32_t block, uint32_t thread,
                                        const RmsNormItems<Shape>& own) {
  using Kind = typename Shape::Kind;
  const RmsNormPlace at = rms_norm_place<Shape>(walk, block, thread);
  int written = 0;
  RmsNorms<Shape> norms[Shape::kPixels];
  CVK_UNROLL
  for (int p = 0; p < Shape::kPixels; ++p) norms[p] = norms_of<Shape>(own.sums[p], walk.added);
  if constexpr (Shape::kKept > 0) {
    constexpr int kGroup =
        Shape::kKept < 4 ? Shape::kKept : 4;  // units whose parameters are under way at once
    CVK_UNROLL
    for (int first = 0; first < Shape::kKept; first += kGroup) {
      RmsNormParameters<Kind> parameters[kGroup];
      CVK_UNROLL
      for (int k = 0; k < kGroup; ++k)
        parameters[k] = parameters_of<Kind>(walk, at.unit + (first + k) * at.step);
      CVK_UNROLL
      for (int k = 0; k < kGroup; ++k) {
        CVK_UNROLL
        for (int p = 0; p < Shape::kPixels; ++p)
          written += rms_norm_store<Shape>(walk, at.b, at.item + p * at.next, at.unit + (first + k) * at.step,
                                           own.kept[p][first + k], norms[p], parameters[k]);
      }
    }
  } else {
    for (uint32_t unit = at.unit; unit < walk.units; unit += at.step)
      written += rms_norm_store<Shape>(walk, at.b, at.item, unit, unit_load<Kind>(walk, at.b, at.item, unit),
                                       norms[0], parameters_of<Kind>(walk, unit));
  }
  return written;
}

}  // namespace cvk
