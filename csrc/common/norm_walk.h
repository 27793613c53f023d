// How a thread of the CUDA norms finds its elements, as functions that compile for the host as well: tests
// run them there, thread after thread, on whole small problems (norm_rehearsal.h).
//
// An item is 16 bytes of neighbours: channels of a pixel where those lie next to each other in x ("across"),
// else pixels of a channel. Which elements make an item, and which thread takes it, depends on the sizes
// alone; where memory does not allow a 16-byte word, a thread takes its item element by element. So sums run
// in the same order wherever a tensor lies.
#pragma once

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "fast_divide.h"
#include "numbers.h"
#include "tensor.h"

#if defined(__CUDA_ARCH__)
#define CVK_UNROLL _Pragma("unroll")
#else
#define CVK_UNROLL
#endif

namespace cvk {

static constexpr int kNormThreads = 256;

// What a kernel is compiled for.
template <Dtype kDtype_, bool kAcross_, bool kWords_>
struct NormKind {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr bool kAcross = kAcross_;  // an item is channels of a pixel, else pixels of a channel
  static constexpr bool kWords = kWords_;    // it is one word in memory
  static constexpr int kItem = kDtype == Dtype::float32 ? 4 : 8;
  static constexpr int kChannels = kAcross ? kItem : 1;  // of an item
  using Element = std::conditional_t<kDtype == Dtype::float32, uint32_t, uint16_t>;
};

// An item in registers, as it lies in memory.
struct alignas(16) NormItem {
  uint32_t word[4];
};

template <Dtype kDtype>
CVK_HD static inline float widen(uint32_t bits) {
  if constexpr (kDtype == Dtype::float32) return float_of(bits);
  if constexpr (kDtype == Dtype::bfloat16) return Bfloat16::to_float(static_cast<uint16_t>(bits));
  return Float16::to_float(static_cast<uint16_t>(bits));
}

template <Dtype kDtype>
CVK_HD static inline uint32_t narrow(float value) {
  if constexpr (kDtype == Dtype::float32) return bits_of(value);
  if constexpr (kDtype == Dtype::bfloat16) return Bfloat16::from_float(value);
  return Float16::from_float(value);
}

// Rounded once, as if it were stored and read again.
template <Dtype kDtype>
CVK_HD static inline float rounded(float value) {
  return widen<kDtype>(narrow<kDtype>(value));
}

template <class Kind>
CVK_HD static inline float element(const NormItem& item, int i) {
  if constexpr (Kind::kItem == 4) return float_of(item.word[i]);
  return widen<Kind::kDtype>(item.word[i / 2] >> 16 * (i % 2) & 0xffff);
}

template <class Kind>
CVK_HD static inline NormItem item_of(const float (&value)[Kind::kItem]) {
  NormItem item;
  CVK_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (Kind::kItem == 4)
      item.word[i] = bits_of(value[i]);
    else
      item.word[i] = narrow<Kind::kDtype>(value[2 * i]) | narrow<Kind::kDtype>(value[2 * i + 1]) << 16;
  }
  return item;
}

// y / (1 + exp(-y)). On the GPU by its exponential and its reciprocal: in half precision the quick ones,
// whose errors are far below the digits that are kept.
template <Dtype kDtype>
CVK_HD static inline float silu_of(float y) {
#if defined(__CUDA_ARCH__)
  return __fdividef(y, 1.0f + (kDtype == Dtype::float32 ? expf(-y) : __expf(-y)));
#else
  return y / (1.0f + expf(-y));
#endif
}

// part / whole, of numbers of values: to a few units in the last place, which a mean is the same weighted by.
// Nothing of nothing is nothing.
CVK_HD static inline float share_of(float part, float whole) {
#if defined(__CUDA_ARCH__)
  return part > 0 ? __fdividef(part, whole) : 0;
#else
  return part > 0 ? part / whole : 0;
#endif
}

// ---------------------------------------------------------------- pixels

// Three axes of pixels, the innermost first. `by_0` and `by_1` divide by the sizes of the first two; `flat`:
// there is only the first.
struct NormAxes {
  bool flat;
  FastDivide by_0, by_1;
};

struct NormPixel {
  uint32_t at[3];
};

CVK_HD static inline NormPixel norm_pixel(const NormAxes& axes, uint32_t pixel) {
  if (axes.flat) return {{pixel, 0, 0}};
  const uint32_t row = axes.by_0(pixel), frame = axes.by_1(row);
  return {{pixel - row * axes.by_0.divisor, row - frame * axes.by_1.divisor, frame}};
}

// Strides in elements.
struct NormTensor {
  char* data;
  int64_t batch, channel, axis[3];
};

CVK_HD static inline int64_t norm_offset(const NormTensor& t, const NormPixel& pixel) {
  return pixel.at[0] * t.axis[0] + pixel.at[1] * t.axis[1] + pixel.at[2] * t.axis[2];
}

template <class Kind>
CVK_HD static inline typename Kind::Element* norm_base(const NormTensor& t, int64_t b, int64_t channel) {
  return reinterpret_cast<typename Kind::Element*>(t.data) + b * t.batch + channel * t.channel;
}

// The pixel that element `i` of an item is of. An item is counted by its pixel, or by its group of pixels.
template <class Kind>
CVK_HD static inline uint32_t pixel_of(uint32_t item, int i) {
  return Kind::kAcross ? item : item * Kind::kItem + i;
}

// How many elements of an item there are: the last channels or pixels may be fewer.
template <class Kind>
CVK_HD static inline int item_size(uint32_t item, uint32_t channel, uint32_t channels, uint32_t pixels) {
  if constexpr (Kind::kWords) return Kind::kItem;
  const uint32_t left = Kind::kAcross ? channels - channel : pixels - item * Kind::kItem;
  return left < Kind::kItem ? static_cast<int>(left) : Kind::kItem;
}

// Element offset, from an item's channel, of its element `i`.
template <class Kind>
CVK_HD static inline int64_t element_offset(const NormTensor& t, const NormAxes& axes, uint32_t item, int i) {
  return norm_offset(t, norm_pixel(axes, pixel_of<Kind>(item, i))) + (Kind::kAcross ? i * t.channel : 0);
}

// `base` is the channel's; zeros in place of elements that there are not.
template <class Kind>
CVK_HD static inline NormItem norm_load(const NormTensor& t, const NormAxes& axes,
                                        const typename Kind::Element* base, uint32_t item, int size) {
  if constexpr (Kind::kWords) {
    return *reinterpret_cast<const NormItem*>(base + element_offset<Kind>(t, axes, item, 0));
  } else {
    NormItem result{};
    CVK_UNROLL
    for (int i = 0; i < Kind::kItem; ++i) {
      if (i >= size) continue;
      const uint32_t bits = base[element_offset<Kind>(t, axes, item, i)];
      if constexpr (Kind::kItem == 4)
        result.word[i] = bits;
      else
        result.word[i / 2] |= bits << 16 * (i % 2);
    }
    return result;
  }
}

template <class Kind>
CVK_HD static inline void norm_store(const NormTensor& t, const NormAxes& axes, typename Kind::Element* base,
                                     uint32_t item, int size, const NormItem& value) {
  if constexpr (Kind::kWords) {
    *reinterpret_cast<NormItem*>(base + element_offset<Kind>(t, axes, item, 0)) = value;
  } else {
    CVK_UNROLL
    for (int i = 0; i < Kind::kItem; ++i) {
      if (i >= size) continue;
      const uint32_t bits = Kind::kItem == 4 ? value.word[i % 4] : value.word[i / 2] >> 16 * (i % 2) & 0xffff;
      base[element_offset<Kind>(t, axes, item, i)] = static_cast<typename Kind::Element>(bits);
    }
  }
}

}  // namespace cvk
