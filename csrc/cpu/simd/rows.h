// Rows of pixels in any layout and type, read and written as float32 [column][channel]. For instruction-set
// units only (see vec.h).
#pragma once

#include <cstring>

#include "../../common/index.h"
#include "convert.h"
#include "vec.h"

namespace cvk {
namespace {

// One row of one frame, in any layout.
template <class Type>
struct SourceRow {
  const typename Type::Item* data;
  int64_t channels, width, stride_c, stride_w;
};

// A vector's worth of elements that lie next to each other.
template <class Type>
inline Vec load_lanes(const typename Type::Item* src) {
  float lanes[kLanes];
  load_run<Type>(lanes, src, kLanes);
  return load(lanes);
}
template <>
inline Vec load_lanes<Float32>(const float* src) {
  return load(src);
}

template <class Type>
inline void store_lanes(typename Type::Item* dst, Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  store_run<Type>(dst, lanes, kLanes);
}
template <>
inline void store_lanes<Float32>(float* dst, Vec v) {
  store(dst, v);
}

#ifdef CVK_CONVERT

// The same as Bfloat16::to_float and from_float, for all lanes at once: of a loop over the lanes of a
// register GCC 12 takes them out one by one, which was 45 % of a 1x1x1 convolution on matrix tiles.
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));

template <>
inline Vec load_lanes<Bfloat16>(const uint16_t* src) {
  Halves halves;
  std::memcpy(&halves, src, sizeof halves);
  const Bits bits = __builtin_convertvector(halves, Bits) << 16;
  return reinterpret_cast<Vec>(bits);
}

template <>
inline void store_lanes<Bfloat16>(uint16_t* dst, Vec v) {
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  const Bits result = (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
  const Halves halves = __builtin_convertvector(result, Halves);
  std::memcpy(dst, &halves, sizeof halves);
}

#endif

// The first `count` elements, then zeros.
template <class Type>
inline Vec load_some(const typename Type::Item* src, int64_t count) {
  if (count == kLanes) return load_lanes<Type>(src);
  float lanes[kLanes] = {};
  load_run<Type>(lanes, src, count);
  return load(lanes);
}
template <class Type>
inline void store_some(typename Type::Item* dst, Vec v, int64_t count) {
  if (count == kLanes) return store_lanes<Type>(dst, v);
  float lanes[kLanes];
  store(lanes, v);
  store_run<Type>(dst, lanes, count);
}

// Calls body(first, count) for blocks of kLanes of [0, size), the last of which may overlap the one before.
template <class Body>
inline void for_each_block(int64_t size, const Body& body) {
  if (size < kLanes) return body(int64_t{0}, size);
  for (int64_t i = 0; i < size; i += kLanes) body(min_of(i, size - kLanes), int64_t{kLanes});
}

// The same with a shorter last block: nothing is visited twice.
template <class Body>
inline void for_each_disjoint_block(int64_t size, const Body& body) {
  for (int64_t i = 0; i < size; i += kLanes) body(i, min_of(kLanes, size - i));
}

template <class Type>
inline void gather_pixel(float* dst, const SourceRow<Type>& row, int64_t w) {
  const typename Type::Item* src = row.data + w * row.stride_w;
  if (row.stride_c == 1) return load_run<Type>(dst, src, row.channels);
  for (int64_t c = 0; c < row.channels; ++c) dst[c] = Type::to_float(src[c * row.stride_c]);
}

// Columns that lie next to each other: transposed in registers.
template <class Type>
void gather_transposed(float* dst, int64_t pixel_floats, const SourceRow<Type>& row, int64_t w,
                       int64_t count) {
  for_each_block(row.channels, [&](int64_t c0, int64_t channels) {
    for_each_block(count, [&](int64_t i0, int64_t columns) {
      Vec block[kLanes] = {};
      for (int64_t c = 0; c < channels; ++c)
        block[c] = load_some<Type>(row.data + (c0 + c) * row.stride_c + w + i0, columns);
      transpose(block);
      for (int64_t i = 0; i < columns; ++i)
        store_some<Float32>(dst + (i0 + i) * pixel_floats + c0, block[i], channels);
    });
  });
}

// Source columns [first, first + count), as float32 [column][channel]; padded where they lie outside.
template <class Type>
void gather_row(float* dst, int64_t pixel_floats, const SourceRow<Type>& row, int64_t first, int64_t count,
                SpatialMode mode) {
  auto pad = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t w = source_pixel(first + i, row.width, mode);
      if (w >= 0) {
        gather_pixel(dst + i * pixel_floats, row, w);
      } else {
        std::memset(dst + i * pixel_floats, 0, row.channels * sizeof(float));
      }
    }
  };
  const int64_t begin = min_of(max_of(-first, 0), count);
  const int64_t end = max_of(min_of(row.width - first, count), begin);
  pad(0, begin);
  float* inside = dst + begin * pixel_floats;
  const int64_t w = first + begin, columns = end - begin;
  if (row.stride_c == 1 && row.stride_w == row.channels && pixel_floats == row.channels) {
    load_run<Type>(inside, row.data + w * row.stride_w, columns * row.channels);
  } else if (row.stride_c == 1 && row.channels == kLanes) {
    for (int64_t i = 0; i < columns; ++i)
      store(inside + i * pixel_floats, load_lanes<Type>(row.data + (w + i) * row.stride_w));
  } else if (row.stride_c != 1 && row.stride_w == 1) {
    gather_transposed(inside, pixel_floats, row, w, columns);
  } else {
    for (int64_t i = 0; i < columns; ++i) gather_pixel(inside + i * pixel_floats, row, w + i);
  }
  pad(end, count);
}

// Where a row is written, or a residual is read; a null address for none.
template <class Type>
struct OutputRow {
  typename Type::Item* data;
  int64_t stride_c, stride_w;
};

// out = pixels + extra for up to kLanes channels; a pixel of float32 has its channels next to each other.
// `extra` may be `out`: each element is read before it is written, and once.
template <class Type>
void store_row(const OutputRow<Type>& out, const OutputRow<Type>& extra, const float* pixels,
               int64_t pixel_floats, int64_t channels, int64_t columns) {
  if (out.stride_c == 1 && (!extra.data || extra.stride_c == 1)) {
    for (int64_t i = 0; i < columns; ++i) {
      Vec v = load(pixels + i * pixel_floats);
      if (extra.data) v = v + load_some<Type>(extra.data + i * extra.stride_w, channels);
      store_some<Type>(out.data + i * out.stride_w, v, channels);
    }
  } else if (out.stride_w == 1 && (!extra.data || extra.stride_w == 1)) {
    for_each_disjoint_block(columns, [&](int64_t i0, int64_t count) {
      Vec block[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) block[i] = load(pixels + (i0 + i) * pixel_floats);
      transpose(block);
      for (int64_t c = 0; c < channels; ++c) {
        Vec v = block[c];
        if (extra.data) v = v + load_some<Type>(extra.data + c * extra.stride_c + i0, count);
        store_some<Type>(out.data + c * out.stride_c + i0, v, count);
      }
    });
  } else {
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t c = 0; c < channels; ++c) {
        float value = pixels[i * pixel_floats + c];
        if (extra.data) value += Type::to_float(extra.data[c * extra.stride_c + i * extra.stride_w]);
        out.data[c * out.stride_c + i * out.stride_w] = Type::from_float(value);
      }
  }
}

}  // namespace
}  // namespace cvk
