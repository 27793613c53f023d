// Source rows in any layout and type, gathered as float32 [column][channel]. For instruction-set units only
// (see vec.h).
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

template <class Type>
void gather_pixel(float* dst, const SourceRow<Type>& row, int64_t w) {
  const typename Type::Item* src = row.data + w * row.stride_w;
  if (row.stride_c == 1) return load_run<Type>(dst, src, row.channels);
  for (int64_t c = 0; c < row.channels; ++c) dst[c] = Type::to_float(src[c * row.stride_c]);
}

// Columns that lie next to each other: transposed in blocks, so that both sides move whole cache lines.
template <class Type>
void gather_transposed(float* dst, int64_t pixel_floats, const SourceRow<Type>& row, int64_t w,
                       int64_t count) {
  constexpr int64_t kSide = 16;
  float block[kSide][kSide];
  for (int64_t c0 = 0; c0 < row.channels; c0 += kSide) {
    const int64_t channels = min_of(kSide, row.channels - c0);
    for (int64_t i0 = 0; i0 < count; i0 += kSide) {
      const int64_t columns = min_of(kSide, count - i0);
      for (int64_t c = 0; c < channels; ++c)
        load_run<Type>(block[c], row.data + (c0 + c) * row.stride_c + w + i0, columns);
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t c = 0; c < channels; ++c) dst[(i0 + i) * pixel_floats + c0 + c] = block[c][i];
    }
  }
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
  } else if (row.stride_c != 1 && row.stride_w == 1) {
    gather_transposed(inside, pixel_floats, row, w, columns);
  } else {
    for (int64_t i = 0; i < columns; ++i) gather_pixel(inside + i * pixel_floats, row, w + i);
  }
  pad(end, count);
}

}  // namespace
}  // namespace cvk
