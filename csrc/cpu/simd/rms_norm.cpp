// The RMS norm for one instruction set; compiled once for each (CVK_ISA names its namespace).
#include "../rms_norm.h"

#include "convert.h"
#include "rows.h"
#include "silu.h"
#include "strided.h"
#include "vec.h"
#include "wide.h"

#if defined(__GNUC__)
#define CVK_SQRT __builtin_sqrt
#else
#include <math.h>
#define CVK_SQRT sqrt
#endif

namespace cvk {
namespace {

// A NaN stays one.
inline float norm_of(double square) {
  const double norm = CVK_SQRT(square);
  return static_cast<float>(norm < kLeastNorm ? kLeastNorm : norm);
}

// Rounds to the type, as the model does before it scales.
template <class Type>
inline Vec rounded(Vec v) {
  typename Type::Item items[kLanes];
  store_lanes<Type>(items, v);
  return load_lanes<Type>(items);
}
template <>
inline Vec rounded<Float32>(Vec v) {
  return v;
}

// Divides, as the model does: multiplying with the inverse rounds twice, and of one channel makes no one.
template <class Type, bool kSilu>
CVK_ALWAYS_INLINE Vec normalise(Vec x, Vec length, Vec factor, Vec offset) {
  const Vec y = multiply_add(rounded<Type>(x / length), factor, offset);
  return kSilu ? silu(y) : y;
}

template <class Item>
inline Item* row_of(const Tensor5& tensor, int64_t batch, int64_t row) {
  return static_cast<Item*>(tensor.data) + batch * tensor.stride[0] +
         row / tensor.size[3] * tensor.stride[2] + row % tensor.size[3] * tensor.stride[3];
}

template <class Type, bool kSilu>
void write_row_of(const RmsNormPass& p, int64_t batch, int64_t row) {
  using Item = typename Type::Item;
  const RmsNorm& norm = p.norm;
  const int64_t channels = norm.x.size[1], width = norm.x.size[4];
  const Item* x = row_of<Item>(norm.x, batch, row);
  Item* out = row_of<Item>(norm.out, batch, row);
  for (int64_t w = 0; w < width; ++w, x += norm.x.stride[4], out += norm.out.stride[4]) {
    Wide squares[2] = {};
    for_each_vector(channels, [&](int64_t c, int64_t count) {
      Wide first, second;
      widen(load_some<Type>(x + c, count), first, second);
      squares[0] = squares[0] + first * first;
      squares[1] = squares[1] + second * second;
    });
    const Vec length = splat(norm_of(sum_of(squares[0], squares[1]) + p.added));
    for_each_vector(channels, [&](int64_t c, int64_t count) {
      const Vec v = load_some<Type>(x + c, count);
      store_some<Type>(out + c, normalise<Type, kSilu>(v, length, load(p.factor + c), load(p.offset + c)),
                       count);
    });
  }
}

// `kDense`: the pixels of a row lie next to each other. As a constant it leaves nothing but whole vectors in
// the loops; as a variable it took half precision four times as long.
template <class Type, bool kSilu, bool kDense>
void write_pixels_of(const RmsNormPass& p, typename Type::Item* out, const typename Type::Item* x,
                     int64_t pixels) {
  const RmsNorm& norm = p.norm;
  const int64_t channels = norm.x.size[1];
  const int64_t x_step = kDense ? 1 : norm.x.stride[4], out_step = kDense ? 1 : norm.out.stride[4];
  double squares[kMostPixels] = {};
  float lengths[kMostPixels];
  for (int64_t c = 0; c < channels; ++c)
    for_each_vector(pixels, [&](int64_t i, int64_t count) {
      Wide low, high;
      widen(load_strided<Type>(x + c * norm.x.stride[1] + i * x_step, x_step, count), low, high);
      add_to(squares + i, low * low);
      add_to(squares + i + kHalf, high * high);
    });
  for (int64_t i = 0; i < p.pixels; ++i) lengths[i] = norm_of(squares[i] + p.added);
  for (int64_t c = 0; c < channels; ++c) {
    const Vec factor = splat(p.factor[c]), offset = splat(p.offset[c]);
    for_each_vector(pixels, [&](int64_t i, int64_t count) {
      const Vec v = load_strided<Type>(x + c * norm.x.stride[1] + i * x_step, x_step, count);
      store_strided<Type>(out + c * norm.out.stride[1] + i * out_step, out_step,
                          normalise<Type, kSilu>(v, load(lengths + i), factor, offset), count);
    });
  }
}

template <class Type, bool kSilu>
void write_block_of(const RmsNormPass& p, int64_t batch, int64_t row, int64_t block) {
  using Item = typename Type::Item;
  const Tensor5 &x = p.norm.x, &out = p.norm.out;
  const int64_t first = block * p.pixels, pixels = min_of(p.pixels, x.size[4] - first);
  const auto write = x.stride[4] == 1 && out.stride[4] == 1 ? write_pixels_of<Type, kSilu, true>
                                                            : write_pixels_of<Type, kSilu, false>;
  write(p, row_of<Item>(out, batch, row) + first * out.stride[4],
        row_of<Item>(x, batch, row) + first * x.stride[4], pixels);
}

void write_row(const RmsNormPass& p, int64_t batch, int64_t row) {
  CVK_FOR_TYPE(p.norm.dtype, p.norm.silu ? write_row_of<Type, true>(p, batch, row)
                                         : write_row_of<Type, false>(p, batch, row));
}

void write_block(const RmsNormPass& p, int64_t batch, int64_t row, int64_t block) {
  CVK_FOR_TYPE(p.norm.dtype, p.norm.silu ? write_block_of<Type, true>(p, batch, row, block)
                                         : write_block_of<Type, false>(p, batch, row, block));
}

}  // namespace

namespace CVK_ISA {
extern const RmsNormKernels rms_norm = {write_row, write_block};
}

}  // namespace cvk
