// The Winograd convolution for one instruction set; compiled once for each (CVK_ISA names its namespace).
//
// An item is a band of tiles. Each source frame of the band is transformed once and kept while output frames
// need it; then, for each phase and each of the 36 transformed values of a tile (those that its kernel
// leaves), the micro-kernel multiplies sums or differences of frames with the packed weights, and the sums of
// an output frame are transformed back.
//
// Every sum runs over the input channels in their order, wherever the band begins: the bits of a result
// depend neither on the bands nor on the threads.
#include "../causal_conv3d_winograd.h"

#include <cstring>

#include "multiply.h"
#include "rows.h"
#include "vec.h"

namespace cvk {
namespace {

constexpr int64_t kSegment = 12;  // tiles next to each other that are gathered at once
constexpr int64_t kSegmentColumns = kSegment * kTilePixels;
constexpr int64_t kGatheredColumns = kSegmentColumns + 2;

// ---------------------------------------------------------------- transforms
//
// Cook and Toom's scheme with the points 0, +-5/8, +-3/2 and infinity. They keep the error of a convolution
// at 1.3e-6 in float32 (128 channels), where the usual 0, +-1, +-2 give 3.0e-6, and float32 holds every
// factor of the transforms of pixels and sums exactly.

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB, kA3 = kA2 * kA, kB3 = kB2 * kB;

// 6 pixels -> 6 values.
inline void transform_pixels(const Vec (&d)[6], Vec (&v)[6]) {
  v[0] = multiply_add(d[2], -(kA2 + kB2), d[4]);
  v[0] = multiply_add(d[0], kA2 * kB2, v[0]);
  const Vec even_a = multiply_add(d[2], -kB2, d[4]), odd_a = multiply_add(d[1], -kB2, d[3]) * kA;
  const Vec even_b = multiply_add(d[2], -kA2, d[4]), odd_b = multiply_add(d[1], -kA2, d[3]) * kB;
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = multiply_add(d[3], -(kA2 + kB2), d[5]);
  v[5] = multiply_add(d[1], kA2 * kB2, v[5]);
}

// 6 sums -> 4 pixels.
inline void transform_sums(const Vec (&m)[6], Vec (&y)[4]) {
  const Vec sum_a = m[1] + m[2], difference_a = m[1] - m[2];
  const Vec sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = m[0] + sum_a + sum_b;
  y[1] = multiply_add(difference_b, kB, difference_a * kA);
  y[2] = multiply_add(sum_b, kB2, sum_a * kA2);
  y[3] = multiply_add(difference_b, kB3, multiply_add(difference_a, kA3, m[5]));
}

// 3 weights -> 6 values.
inline void transform_weights(const Vec (&g)[3], Vec (&u)[6]) {
  constexpr float a = 1 / (2 * kA2 * (kA2 - kB2)), b = 1 / (2 * kB2 * (kB2 - kA2));
  u[0] = g[0] * (1 / (kA2 * kB2));
  const Vec even_a = multiply_add(g[2], a * kA2, g[0] * a), odd_a = g[1] * (a * kA);
  const Vec even_b = multiply_add(g[2], b * kB2, g[0] * b), odd_b = g[1] * (b * kB);
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
}

// ---------------------------------------------------------------- scratch

int64_t rounded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// A row of channels for each tile. One cache line more between rows and between points, or those of a power
// of two of channels would share few sets of the cache.
struct Panel {
  float* data;
  int64_t row, point;  // floats from one tile, or one point, to the next
};

int64_t row_floats(int64_t channels) { return rounded(channels) + kLineFloats; }
int64_t panel_floats(const Winograd& p, int64_t channels) {
  return kPoints * (p.band * row_floats(channels) + kLineFloats);
}

Panel panel_at(const Winograd& p, float* data, int64_t channels) {
  return {data, row_floats(channels), p.band * row_floats(channels) + kLineFloats};
}

// Where the parts of an item's scratch begin.
struct Parts {
  Panel frames[4], sums[2];
  float *combined, *pixels;

  Parts(const Winograd& p, int64_t blocks, float* scratch) {
    const int64_t inputs = p.conv.x.size[1], outputs = blocks * kBlock;
    for (int i = 0; i < p.slots; ++i, scratch += panel_floats(p, inputs))
      frames[i] = panel_at(p, scratch, inputs);
    for (int i = 0; i < 2; ++i, scratch += panel_floats(p, outputs)) sums[i] = panel_at(p, scratch, outputs);
    combined = scratch;
    pixels = combined + kSlices * p.band * row_floats(inputs);
  }
};

int64_t scratch_floats(const Winograd& p, int64_t blocks) {
  const int64_t inputs = p.conv.x.size[1];
  return p.slots * panel_floats(p, inputs) + 2 * panel_floats(p, blocks * kBlock) +
         kSlices * p.band * row_floats(inputs) + kRead * kGatheredColumns * kLanes;
}

// ---------------------------------------------------------------- tiles of an item

// Tiles of one row of tiles, next to each other.
struct Segment {
  int64_t batch, frame, row, column;  // of the first output pixel; `frame` is 0 unless frame_by_frame
  int64_t tile, tiles;                // the first one, counted in the item, and how many
};

template <class Body>
inline void for_each_segment(const Winograd& p, const WinogradItem& item, const Body& body) {
  const int64_t frames = p.frame_by_frame ? p.conv.x.size[2] : 1;
  for (int64_t tile = 0; tile < item.tiles;) {
    const int64_t index = item.first_tile + tile, column = index % p.tile_columns;
    const int64_t row = index / p.tile_columns % p.tile_rows, frame = index / p.tile_columns / p.tile_rows;
    Segment s;
    s.batch = frame / frames;
    s.frame = frame % frames;
    s.row = row * kTilePixels;
    s.column = column * kTilePixels;
    s.tile = tile;
    s.tiles = min_of(min_of(kSegment, p.tile_columns - column), item.tiles - tile);
    body(s);
    tile += s.tiles;
  }
}

// ---------------------------------------------------------------- pixels to transformed frames

template <class Type>
void transform_frame(const Winograd& p, const WinogradItem& item, const SourceFrame& frame,
                     const Panel& panel, float* pixels) {
  const CausalConv3d& conv = p.conv;
  const Tensor5& from = frame.origin == FrameOrigin::state ? *conv.state : conv.x;
  const int64_t channels = from.size[1];
  for_each_segment(p, item, [&](const Segment& s) {
    const int64_t columns = s.tiles * kTilePixels + 2, row_floats = kGatheredColumns * kLanes;
    for (int64_t c = 0; c < channels; c += kLanes) {
      for (int64_t r = 0; r < kRead; ++r) {
        const int64_t above = s.row + r - conv.top;
        // Rows and columns beyond the padding belong to tiles that reach over the edge: their sums are
        // dropped.
        const int64_t h =
            above < from.size[3] + conv.bottom ? source_pixel(above, from.size[3], conv.spatial_mode) : -1;
        float* dst = pixels + r * row_floats;
        if (h < 0) {
          std::memset(dst, 0, columns * kLanes * sizeof(float));
          continue;
        }
        const auto* data = static_cast<const typename Type::Item*>(from.data) + s.batch * from.stride[0] +
                           (frame.index + s.frame) * from.stride[2] + h * from.stride[3] + c * from.stride[1];
        const SourceRow<Type> row{data, min_of(kLanes, channels - c), from.size[4], from.stride[1],
                                  from.stride[4]};
        const int64_t left = s.column - conv.left;
        const int64_t inside = min_of(columns, from.size[4] + conv.right - left);
        gather_row(dst, kLanes, row, left, inside, conv.spatial_mode);
        std::memset(dst + inside * kLanes, 0, (columns - inside) * kLanes * sizeof(float));
      }
      for (int64_t t = 0; t < s.tiles; ++t) {
        // The panels are in the last-level cache: without this, two thirds of the time is waiting for them.
        float* soon = panel.data + (s.tile + t + 2) * panel.row + c;
        for (int64_t i = 0; i < kPoints; ++i) prefetch_for_writing(soon + i * panel.point);
        Vec half[kRead][kRead];  // [column][transformed row]
        for (int64_t j = 0; j < kRead; ++j) {
          Vec d[kRead];
          for (int64_t r = 0; r < kRead; ++r)
            d[r] = load(pixels + r * row_floats + (t * kTilePixels + j) * kLanes);
          transform_pixels(d, half[j]);
        }
        float* dst = panel.data + (s.tile + t) * panel.row + c;
        for (int64_t i = 0; i < kRead; ++i) {
          Vec d[kRead], v[kRead];
          for (int64_t j = 0; j < kRead; ++j) d[j] = half[j][i];
          transform_pixels(d, v);
          for (int64_t j = 0; j < kRead; ++j) store(dst + (i * kRead + j) * panel.point, v[j]);
        }
      }
    }
  });
}

// ---------------------------------------------------------------- products

// What becomes of the sums of a product, for each of the two output frames.
struct Target {
  float* sums;  // [tile][output channels of the item], or null
  float factor;
  bool first;  // nothing has been added to it yet
};

struct Product {
  const float* rows;     // [tile][input channels]
  int64_t row;           // floats from one row to the next
  const float* weights;  // [block][input channels][kBlock]
  int64_t sum_row;       // floats from one tile to the next in the targets
  int64_t depth;         // input channels
  Target targets[2];
};

// Input channels that are added up in one go: with the sums of 512 in one, the error would be twice as large.
constexpr int64_t kDepth = 128;

template <int kRows, int kVectors>
CVK_NOINLINE void multiply_rows(const Product& p, int64_t tile, int64_t channel, int64_t weight,
                                const float* ahead) {
  for (const Target& target : p.targets)
    if (target.sums && target.first)
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v)
          prefetch_for_writing(target.sums + (tile + r) * p.sum_row + channel + v * kLanes);
  for (int64_t k = 0; k < p.depth; k += kDepth) {
    Vec acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) acc[r][v] = Vec{};
    multiply(acc, p.rows + tile * p.row + k, p.row, p.weights + weight + k * kBlock,
             min_of(kDepth, p.depth - k), ahead + k * kLineFloats);
    for (const Target& target : p.targets) {
      if (!target.sums) continue;
      float* sums = target.sums + tile * p.sum_row + channel;
      const bool first = target.first && k == 0;
      CVK_UNROLL for (int r = 0; r < kRows; ++r) CVK_UNROLL for (int v = 0; v < kVectors; ++v) {
        float* at = sums + r * p.sum_row + v * kLanes;
        store(at, first ? acc[r][v] * target.factor : multiply_add(acc[r][v], target.factor, load(at)));
      }
    }
  }
}

// Tiles [tile, tile + count), `vectors` vectors of output channels from `channel`; their weights at `weight`.
template <int kRows>
void multiply_some(int64_t count, int64_t vectors, const Product& p, int64_t tile, int64_t channel,
                   int64_t weight, const float* ahead) {
  if constexpr (kRows > 1) {
    if (count < kRows) return multiply_some<kRows - 1>(count, vectors, p, tile, channel, weight, ahead);
  }
  if (vectors == 2) {
    multiply_rows<kRows, 2>(p, tile, channel, weight, ahead);
  } else {
    multiply_rows<kRows, 1>(p, tile, channel, weight, ahead);
  }
}

void add(float* dst, const float* a, float sign, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(dst + i, multiply_add(load(b + i), sign, load(a + i)));
}

// The transformed frames of a point, brought near while the point before it is computed.
class NextRows {
 public:
  NextRows(const Winograd& p, const WinogradItem& item, const Parts& parts, int64_t point)
      : parts_(parts), slots_(p.slots), floats_(item.tiles * parts.frames[0].row), point_(point) {}

  const float* advance(int64_t lines) {
    const Panel& panel = parts_.frames[slot_];
    const float* rows = panel.data + point_ * panel.point + done_;
    done_ += lines * kLineFloats;
    if (done_ >= floats_ && slot_ + 1 < slots_) {
      done_ = 0;
      ++slot_;
    }
    return rows;
  }

 private:
  const Parts& parts_;
  int64_t slots_, floats_, point_, slot_ = 0, done_ = 0;
};

void multiply_step(const Winograd& p, const WinogradItem& item, const WinogradStep& step,
                   const WinogradPhase& phase, const Parts& parts) {
  const int64_t inputs = p.conv.x.size[1], outputs = p.conv.out.size[1];
  const int64_t groups = (item.tiles + kColumnsPerKernel - 1) / kColumnsPerKernel;
  const int64_t row = parts.frames[0].row, plane = p.blocks * inputs * kBlock;
  const PointRange rows_of_points = phase.points.rows, columns_of_points = phase.points.columns;
  const int64_t across = columns_of_points.last - columns_of_points.first, points = point_count(phase.points);
  const bool slices_apart = p.doubling != Doubling::none;
  const int64_t slice_stride = slices_apart ? points * plane : plane;
  const int64_t point_stride = slices_apart ? plane : p.slices * plane;
  auto point_at = [&](int64_t i) {
    return (rows_of_points.first + i / across) * kRead + columns_of_points.first + i % across;
  };
  for (int64_t packed = 0; packed < points; ++packed) {
    const int64_t point = point_at(packed);
    auto frame = [&](int slot) { return parts.frames[slot].data + point * parts.frames[slot].point; };
    auto combined = [&](int product) { return parts.combined + product * p.band * row; };
    Product products[kSlices];
    bool begun[2] = {false, false};
    for (int i = 0; i < step.product_count; ++i) {
      const WinogradProduct& product = step.products[i];
      const float* weights = phase.weights + packed * point_stride + product.slice * slice_stride;
      const float* rows = product.b < 0 ? frame(product.a) : combined(i);
      products[i] = {rows, row, weights, parts.sums[0].row, inputs, {}};
      for (int f = 0; f < 2; ++f) {
        if (product.to[f] == 0) continue;
        products[i].targets[f] = {parts.sums[f].data + point * parts.sums[f].point, product.to[f], !begun[f]};
        begun[f] = true;
      }
    }
    for (int64_t tile = 0; tile < item.tiles; ++tile)
      for (int i = 0; i < step.product_count; ++i) {
        const WinogradProduct& product = step.products[i];
        if (product.b < 0) continue;
        add(combined(i) + tile * row, frame(product.a) + tile * row, product.sign,
            frame(product.b) + tile * row, inputs);
      }
    // The products inside: their sums then stay in the first-level cache, and the weights of a block in the
    // second. Meanwhile the next block's weights are brought near, then the next point's frames.
    NextRows next_rows(p, item, parts, point_at(packed + 1));
    for (int64_t b = 0; b < item.blocks; ++b) {
      const int64_t block = item.first_block + b, vectors = outputs - block * kBlock > kLanes ? 2 : 1;
      const int64_t weight = block * inputs * kBlock;
      for (int64_t g = 0, first = 0; g < groups; ++g) {  // groups of nearly equal size
        const int64_t next = (g + 1) * item.tiles / groups;
        for (int i = 0; i < step.product_count; ++i) {
          const float* next_weights = products[i].weights + weight + inputs * kBlock;
          const float* ahead = g < 2 ? next_weights + g * inputs * kLineFloats : next_rows.advance(inputs);
          multiply_some<kColumnsPerKernel>(next - first, vectors, products[i], first, b * kBlock, weight,
                                           ahead);
        }
        first = next;
      }
    }
  }
}

// ---------------------------------------------------------------- sums to pixels

template <class Type, bool kAllPoints>
void store_frame(const Winograd& p, const WinogradItem& item, const WinogradPhase& phase, int64_t frame,
                 const Panel& sums, float* pixels) {
  using Item = typename Type::Item;
  const CausalConv3d& conv = p.conv;
  const Item* bias = static_cast<const Item*>(conv.bias);
  const int64_t first = item.first_block * kBlock;
  const int64_t channels = min_of(item.blocks * kBlock, conv.out.size[1] - first);
  // Decided at compile time where all are there, which leaves the loops without a branch.
  auto there = [](const PointRange& range, int64_t i) {
    return kAllPoints || (i >= range.first && i < range.last);
  };
  for_each_segment(p, item, [&](const Segment& s) {
    const int64_t rows = min_of(kTilePixels, conv.out.size[3] - s.row);
    const int64_t columns = min_of(s.tiles * kTilePixels, conv.out.size[4] - s.column);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = min_of(kLanes, channels - c);
      float added[kLanes] = {};
      if (bias) load_run<Type>(added, bias + first + c, lanes);
      const Vec shift = load(added);
      for (int64_t t = 0; t < s.tiles; ++t) {
        const float* src = sums.data + (s.tile + t) * sums.row + c;
        for (int64_t i = 0; i < kPoints; ++i) prefetch(src + 2 * sums.row + i * sums.point);
        Vec half[kRead][kTilePixels];  // [column][output row]
        for (int64_t j = 0; j < kRead; ++j) {
          if (!there(phase.points.columns, j)) {
            for (int64_t i = 0; i < kTilePixels; ++i) half[j][i] = Vec{};
            continue;
          }
          Vec m[kRead];
          for (int64_t i = 0; i < kRead; ++i)
            m[i] = there(phase.points.rows, i) ? load(src + (i * kRead + j) * sums.point) : Vec{};
          transform_sums(m, half[j]);
        }
        for (int64_t i = 0; i < rows; ++i) {
          Vec m[kRead], y[kTilePixels];
          for (int64_t j = 0; j < kRead; ++j) m[j] = half[j][i];
          transform_sums(m, y);
          float* dst = pixels + (i * kSegmentColumns + t * kTilePixels) * kLanes;
          for (int64_t j = 0; j < kTilePixels; ++j) store(dst + j * kLanes, y[j] + shift);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        auto row_of = [&](const Tensor5& t) {
          Item* data = static_cast<Item*>(t.data) + s.batch * t.stride[0] + (first + c) * t.stride[1] +
                       (frame + s.frame) * t.stride[2] + (s.row + r) * t.stride[3] + s.column * t.stride[4];
          return OutputRow<Type>{data, t.stride[1], t.stride[4]};
        };
        const OutputRow<Type> none{nullptr, 1, 1};
        store_row(row_of(phase.out), conv.residual ? row_of(*conv.residual) : none,
                  pixels + r * kSegmentColumns * kLanes, kLanes, lanes, columns);
      }
    }
  });
}

// ---------------------------------------------------------------- item

template <class Type>
void compute_item(const Winograd& p, const WinogradItem& item, float* scratch) {
  const Parts parts(p, item.blocks, scratch);
  for (int64_t i = 0; i < p.step_count; ++i) {
    const WinogradStep& step = p.steps[i];
    for (int j = 0; j < step.load_count; ++j)
      transform_frame<Type>(p, item, step.loads[j].frame, parts.frames[step.loads[j].slot], parts.pixels);
    for (int64_t k = 0; k < p.phase_count; ++k) {
      const WinogradPhase& phase = p.phases[k];
      multiply_step(p, item, step, phase, parts);
      const auto store =
          point_count(phase.points) == kPoints ? store_frame<Type, true> : store_frame<Type, false>;
      for (int f = 0; f < step.frames; ++f)
        store(p, item, phase, step.frame + f, parts.sums[f], parts.pixels);
    }
  }
}

void item(const Winograd& p, const WinogradItem& item, float* scratch) {
  switch (p.conv.dtype) {
    case Dtype::float32:
      return compute_item<Float32>(p, item, scratch);
    case Dtype::bfloat16:
      return compute_item<Bfloat16>(p, item, scratch);
    case Dtype::float16:
      return compute_item<Float16>(p, item, scratch);
  }
}

// ---------------------------------------------------------------- pack

// The kernel's three frames -> G0 = g0, G1 = (g0 + g1 + g2) / 2, G2 = (g0 - g1 + g2) / 2, G3 = g2.
inline void transform_frames(const Vec (&g)[3], Vec (&u)[kSlices]) {
  const Vec ends = (g[0] + g[2]) * 0.5f, middle = g[1] * 0.5f;
  u[0] = g[0];
  u[1] = ends + middle;
  u[2] = ends - middle;
  u[3] = g[2];
}

template <class Type>
void pack_block(const WinogradPack& p, int64_t block, int64_t first_input, int64_t inputs) {
  const Tensor5& w = p.weight;
  const int64_t kernel_frames = w.size[2], first = block * kBlock,
                outputs = min_of(kBlock, w.size[0] - first);
  const int64_t point_floats = p.slices * p.blocks * w.size[1] * kBlock;
  const int64_t slice_floats = p.blocks * w.size[1] * kBlock;
  for (int64_t k = first_input; k < first_input + inputs; ++k) {
    float taps[3][3][3][kBlock] = {};
    for (int64_t o = 0; o < outputs; ++o) {
      const auto* src =
          static_cast<const typename Type::Item*>(w.data) + (first + o) * w.stride[0] + k * w.stride[1];
      for (int64_t t = 0; t < kernel_frames; ++t)
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 3; ++j)
            taps[t][i][j][o] = Type::to_float(src[t * w.stride[2] + i * w.stride[3] + j * w.stride[4]]);
    }
    for (int64_t v = 0; v < kBlock; v += kLanes) {
      Vec frames[kSlices][3][3];
      for (int64_t i = 0; i < 3; ++i)
        for (int64_t j = 0; j < 3; ++j) {
          Vec g[3], u[kSlices];
          for (int64_t t = 0; t < 3; ++t) g[t] = load(taps[t][i][j] + v);
          if (p.slices == 1) {
            frames[0][i][j] = g[0];
            continue;
          }
          transform_frames(g, u);
          for (int64_t s = 0; s < kSlices; ++s) frames[s][i][j] = u[s];
        }
      for (int64_t s = 0; s < p.slices; ++s) {
        Vec half[3][kRead];
        for (int64_t j = 0; j < 3; ++j) {
          const Vec g[3] = {frames[s][0][j], frames[s][1][j], frames[s][2][j]};
          transform_weights(g, half[j]);
        }
        float* dst = p.packed + s * slice_floats + (block * w.size[1] + k) * kBlock + v;
        for (int64_t i = p.points.rows.first; i < p.points.rows.last; ++i) {
          const Vec g[3] = {half[0][i], half[1][i], half[2][i]};
          Vec u[kRead];
          transform_weights(g, u);
          for (int64_t j = p.points.columns.first; j < p.points.columns.last; ++j, dst += point_floats)
            store(dst, u[j]);
        }
      }
    }
  }
}

void pack(const WinogradPack& p, int64_t block, int64_t first_input, int64_t inputs) {
  switch (p.dtype) {
    case Dtype::float32:
      return pack_block<Float32>(p, block, first_input, inputs);
    case Dtype::bfloat16:
      return pack_block<Bfloat16>(p, block, first_input, inputs);
    case Dtype::float16:
      return pack_block<Float16>(p, block, first_input, inputs);
  }
}

}  // namespace

namespace CVK_ISA {
extern const WinogradKernels causal_conv3d_winograd = {kBlock, scratch_floats, pack, item};
}

}  // namespace cvk
