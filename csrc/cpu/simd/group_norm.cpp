// Group norm for one instruction set; compiled once for each (CVK_ISA names its namespace).
#include "../group_norm.h"

#include "convert.h"
#include "rows.h"
#include "silu.h"
#include "strided.h"
#include "vec.h"
#include "wide.h"

namespace cvk {
namespace {

// ---------------------------------------------------------------- sums

// Vectors of channels summed at once: their sums fill half of the registers.
constexpr int kSummed = kLanes >= 16 ? 4 : 2;
// Pixels whose channels are summed in registers, before the sums go to memory: 32 KiB at 512 channels.
constexpr int64_t kPixelBlock = 16;

// sums[c], sums[channels + c] += those of `pixels` pixels, for `kVectors` vectors of channels; of the last
// vector `last` lanes.
template <class Type, int kVectors>
inline void sum_pixels(const typename Type::Item* x, int64_t step, int64_t pixels, int64_t last, double* sums,
                       int64_t channels) {
  Moments moments[kVectors] = {};
  for (int64_t i = 0; i < pixels; ++i)
    for (int v = 0; v < kVectors; ++v)
      add(moments[v], load_some<Type>(x + i * step + v * kLanes, v == kVectors - 1 ? last : int64_t{kLanes}));
  for (int v = 0; v < kVectors; ++v) {
    double* sum = sums + v * kLanes;
    if (v < kVectors - 1 || last == kLanes) {
      for (int half = 0; half < 2; ++half) {
        add_to(sum + half * kHalf, moments[v].sum[half]);
        add_to(sum + channels + half * kHalf, moments[v].square[half]);
      }
      continue;
    }
    double lanes[2][kLanes];
    std::memcpy(lanes[0], moments[v].sum, sizeof lanes[0]);
    std::memcpy(lanes[1], moments[v].square, sizeof lanes[1]);
    for (int64_t i = 0; i < last; ++i) {
      sum[i] += lanes[0][i];
      sum[channels + i] += lanes[1][i];
    }
  }
}

template <class Type>
void sum_rows_of(const Tensor5& x, int64_t batch, int64_t row, int64_t rows, double* sums) {
  using Item = typename Type::Item;
  const int64_t channels = x.size[1], height = x.size[3], width = x.size[4], step = x.stride[4];
  for (int64_t r = row; r < row + rows; ++r) {
    const Item* data = static_cast<const Item*>(x.data) + batch * x.stride[0] + r / height * x.stride[2] +
                       r % height * x.stride[3];
    for (int64_t w = 0; w < width; w += kPixelBlock) {
      const Item* block = data + w * step;
      const int64_t pixels = min_of(kPixelBlock, width - w);
      int64_t c = 0;
      for (; c + kSummed * kLanes <= channels; c += kSummed * kLanes)
        sum_pixels<Type, kSummed>(block + c, step, pixels, kLanes, sums + c, channels);
      for (; c < channels; c += kLanes)
        sum_pixels<Type, 1>(block + c, step, pixels, min_of(kLanes, channels - c), sums + c, channels);
    }
  }
}

template <class Type>
void sum_plane_of(const Tensor5& x, int64_t batch, int64_t channel, double* sums) {
  using Item = typename Type::Item;
  const int64_t width = x.size[4], step = x.stride[4];
  Moments moments[2] = {};  // two, because an addition waits for the last one
  for (int64_t t = 0; t < x.size[2]; ++t)
    for (int64_t h = 0; h < x.size[3]; ++h) {
      const Item* row = static_cast<const Item*>(x.data) + batch * x.stride[0] + channel * x.stride[1] +
                        t * x.stride[2] + h * x.stride[3];
      int64_t w = 0;
      for (; step == 1 && w + 2 * kLanes <= width; w += 2 * kLanes)
        for (int m = 0; m < 2; ++m) add(moments[m], load_lanes<Type>(row + w + m * kLanes));
      for (; w < width; w += kLanes)
        add(moments[0], load_strided<Type>(row + w * step, step, min_of(kLanes, width - w)));
    }
  for (const Moments& m : moments) {
    sums[channel] += sum_of(m.sum[0], m.sum[1]);
    sums[x.size[1] + channel] += sum_of(m.square[0], m.square[1]);
  }
}

// ---------------------------------------------------------------- writing

template <bool kSilu>
CVK_ALWAYS_INLINE Vec normalise(Vec x, Vec mean, Vec factor, Vec offset) {
  const Vec y = multiply_add(x - mean, factor, offset);
  return kSilu ? silu(y) : y;
}

// `pixels` pixels with their channels next to each other. No element is read after it was written.
template <class Type, bool kSilu>
inline void write_pixels(typename Type::Item* out, int64_t out_step, const typename Type::Item* x,
                         int64_t x_step, int64_t pixels, int64_t channels, const float* mean,
                         const float* factor, const float* offset) {
  for (int64_t i = 0; i < pixels; ++i, x += x_step, out += out_step)
    for_each_vector(channels, [&](int64_t c, int64_t count) {
      const Vec y =
          normalise<kSilu>(load_some<Type>(x + c, count), load(mean + c), load(factor + c), load(offset + c));
      store_some<Type>(out + c, y, count);
    });
}

template <class Type, bool kSilu>
void write_row_of(const GroupNormPass& p, int64_t batch, int64_t row, float* scratch) {
  using Item = typename Type::Item;
  const GroupNorm& norm = p.norm;
  const int64_t channels = norm.x.size[1], width = norm.x.size[4];
  const int64_t t = row / norm.x.size[3], h = row % norm.x.size[3];
  auto row_of = [&](const Tensor5& tensor) {
    return static_cast<Item*>(tensor.data) + batch * tensor.stride[0] + t * tensor.stride[2] +
           h * tensor.stride[3];
  };
  Item* out = row_of(norm.out);
  const Item* x = row_of(norm.x);
  const int64_t out_step = norm.out.stride[4], x_step = norm.x.stride[4];
  const float* mean = p.coefficients + batch * 3 * p.channel_floats;
  const float *factor = mean + p.channel_floats, *offset = factor + p.channel_floats;
  if (!norm.scale)
    return write_pixels<Type, kSilu>(out, out_step, x, x_step, width, channels, mean, factor, offset);

  float *factors = scratch, *offsets = scratch + p.channel_floats;
  auto latent_row = [&](const Tensor5& tensor) {
    const Item* data = static_cast<const Item*>(tensor.data) + batch * tensor.stride[0] +
                       latent_frame(norm, t) * tensor.stride[2] + h / norm.repeat[1] * tensor.stride[3];
    return SourceRow<Type>{data, channels, tensor.size[4], tensor.stride[1], tensor.stride[4]};
  };
  const SourceRow<Type> scale = latent_row(*norm.scale), shift = latent_row(*norm.shift);
  const int64_t columns = norm.repeat[2];
  for (int64_t w = 0; w < scale.width; ++w) {
    gather_pixel(factors, scale, w);
    gather_pixel(offsets, shift, w);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec s = load(factors + c);
      store(offsets + c, multiply_add(load(offset + c), s, load(offsets + c)));
      store(factors + c, load(factor + c) * s);
    }
    write_pixels<Type, kSilu>(out + w * columns * out_step, out_step, x + w * columns * x_step, x_step,
                              columns, channels, mean, factors, offsets);
  }
}

// One channel; `factor` and `offset` give those of the vector at a column.
template <class Type, bool kSilu, class Factor, class Offset>
inline void write_columns(typename Type::Item* out, int64_t out_step, const typename Type::Item* x,
                          int64_t x_step, int64_t width, Vec mean, const Factor& factor,
                          const Offset& offset) {
  auto write = [&](int64_t from_step, int64_t to_step) {
    for_each_vector(width, [&](int64_t w, int64_t count) {
      const Vec v = load_strided<Type>(x + w * from_step, from_step, count);
      store_strided<Type>(out + w * to_step, to_step, normalise<kSilu>(v, mean, factor(w), offset(w)), count);
    });
  };
  if (x_step == 1 && out_step == 1) return write(1, 1);  // known steps leave whole vectors in the loop
  write(x_step, out_step);
}

// The factors and offsets of a row of columns, each repeated.
template <class Type>
inline void expand_row(const GroupNorm& norm, int64_t batch, int64_t channel, int64_t t, int64_t h,
                       float factor, float offset, float* factors, float* offsets) {
  using Item = typename Type::Item;
  const int64_t columns = norm.repeat[2], frame = latent_frame(norm, t), row = h / norm.repeat[1];
  auto row_of = [&](const Tensor5& tensor) {
    return static_cast<const Item*>(tensor.data) + batch * tensor.stride[0] + channel * tensor.stride[1] +
           frame * tensor.stride[2] + row * tensor.stride[3];
  };
  const Item *scale = row_of(*norm.scale), *shift = row_of(*norm.shift);
  for (int64_t w = 0; w < norm.scale->size[4]; ++w) {
    const float s = Type::to_float(*scale), b = Type::to_float(*shift);
    for (int64_t i = w * columns; i < (w + 1) * columns; ++i) {
      factors[i] = factor * s;
      offsets[i] = b + offset * s;
    }
    scale += norm.scale->stride[4], shift += norm.shift->stride[4];
  }
}

// As many rows at once as `p.rows` says: of rows of 18 columns, one by one, every second vector would be the
// rest of a row.
template <class Type, bool kSilu>
void write_modulated_plane_of(const GroupNormPass& p, int64_t batch, int64_t channel, float* factors) {
  using Item = typename Type::Item;
  const GroupNorm& norm = p.norm;
  const int64_t height = norm.x.size[3], width = norm.x.size[4], repeat = norm.repeat[1];
  const float* coefficients = p.coefficients + batch * 3 * p.channel_floats + channel;
  const float factor = coefficients[p.channel_floats], offset = coefficients[2 * p.channel_floats];
  float* offsets = factors + p.row_floats;
  for (int64_t t = 0; t < norm.x.size[2]; ++t)
    for (int64_t h = 0; h < height; h += p.rows) {
      const int64_t rows = min_of(p.rows, height - h);
      for (int64_t r = 0; r < rows; ++r) {
        float *f = factors + r * width, *o = offsets + r * width;
        if ((h + r) % repeat == 0) {
          expand_row<Type>(norm, batch, channel, t, h + r, factor, offset, f, o);
        } else if (r > 0) {  // else it is there: the row before was alone
          std::memcpy(f, f - width, width * sizeof(float));
          std::memcpy(o, o - width, width * sizeof(float));
        }
      }
      auto row_of = [&](const Tensor5& tensor) {
        return static_cast<Item*>(tensor.data) + batch * tensor.stride[0] + channel * tensor.stride[1] +
               t * tensor.stride[2] + h * tensor.stride[3];
      };
      write_columns<Type, kSilu>(
          row_of(norm.out), norm.out.stride[4], row_of(norm.x), norm.x.stride[4], rows * width,
          splat(coefficients[0]), [&](int64_t i) { return load(factors + i); },
          [&](int64_t i) { return load(offsets + i); });
    }
}

template <class Type, bool kSilu>
void write_plane_of(const GroupNormPass& p, int64_t batch, int64_t channel, float* scratch) {
  using Item = typename Type::Item;
  const GroupNorm& norm = p.norm;
  if (norm.scale) return write_modulated_plane_of<Type, kSilu>(p, batch, channel, scratch);
  const float* coefficients = p.coefficients + batch * 3 * p.channel_floats + channel;
  const Vec factor = splat(coefficients[p.channel_floats]),
            offset = splat(coefficients[2 * p.channel_floats]);
  for (int64_t t = 0; t < norm.x.size[2]; ++t)
    for (int64_t h = 0; h < norm.x.size[3]; ++h) {
      auto row_of = [&](const Tensor5& tensor) {
        return static_cast<Item*>(tensor.data) + batch * tensor.stride[0] + channel * tensor.stride[1] +
               t * tensor.stride[2] + h * tensor.stride[3];
      };
      write_columns<Type, kSilu>(
          row_of(norm.out), norm.out.stride[4], row_of(norm.x), norm.x.stride[4], norm.x.size[4],
          splat(coefficients[0]), [&](int64_t) { return factor; }, [&](int64_t) { return offset; });
    }
}

// ---------------------------------------------------------------- one for all types

void sum_rows(const Tensor5& x, Dtype dtype, int64_t batch, int64_t row, int64_t rows, double* sums) {
  CVK_FOR_TYPE(dtype, sum_rows_of<Type>(x, batch, row, rows, sums));
}

void sum_plane(const Tensor5& x, Dtype dtype, int64_t batch, int64_t channel, double* sums) {
  CVK_FOR_TYPE(dtype, sum_plane_of<Type>(x, batch, channel, sums));
}

void write_row(const GroupNormPass& p, int64_t batch, int64_t row, float* scratch) {
  CVK_FOR_TYPE(p.norm.dtype, p.norm.silu ? write_row_of<Type, true>(p, batch, row, scratch)
                                         : write_row_of<Type, false>(p, batch, row, scratch));
}

void write_plane(const GroupNormPass& p, int64_t batch, int64_t channel, float* scratch) {
  CVK_FOR_TYPE(p.norm.dtype, p.norm.silu ? write_plane_of<Type, true>(p, batch, channel, scratch)
                                         : write_plane_of<Type, false>(p, batch, channel, scratch));
}

}  // namespace

namespace CVK_ISA {
extern const GroupNormKernels group_norm = {sum_rows, write_row, sum_plane, write_plane};
}

}  // namespace cvk
