// The convolution on matrix tiles; compiled with the instructions and with a stand-in (CVK_ISA names the
// namespace).
//
// 32 pixels x 32 outputs are four tiles of sums. A step multiplies them by one group of channels of one tap:
// four loads, four products. Steps come in slabs, whose weights stay in the second-level cache while all
// pixels of the piece pass; between slabs the sums wait in memory, in float32.
//
// Two threads of an Emerald Rapids Xeon, 2.65 GHz, in a loop of four products: nothing loaded 3.5 TFLOP/s,
// four loads from the first-level cache 3.4, from the second 2.5; as much as two fifths of that while the
// host is busy. The kernel: 2.1 to 2.6 and 1.1 to 1.6 (512 channels of 24x36 to 128 of 96x144). Slabs of 12
// steps, whose weights stay in the first-level cache, lost a sixth to sums that came and went; 72 to 216 are
// alike, and so are pieces of 512 to 2048 pixels and pixels that begin in other sets of the first-level
// cache.
#include "../causal_conv3d_tiles.h"

#include <cstring>

#include "../simd/rows.h"
#include "tiles.h"

namespace cvk {
namespace {

constexpr int64_t kSlabSteps = 108;              // at most; 216 KiB of weights
constexpr int64_t kSumsStep = kTileOutputs * 4;  // bytes from the sums of one pixel to the next

// Sums of up to 2 x 2 tiles; `offsets` are where each step's pixels lie, in bytes.
template <int kPixelTiles, int kOutputTiles>
inline void multiply_steps(Tiles& tiles, float* sums, const char* pixels, int64_t pixel_step,
                           const int64_t* offsets, const uint16_t* weights, int64_t steps, bool first) {
  constexpr bool two_pixels = kPixelTiles > 1, two_outputs = kOutputTiles > 1;
  float* const below = sums + kTileRows * kTileOutputs;
  if (first) {
    tiles.zero<0>();
    if (two_outputs) tiles.zero<1>();
    if (two_pixels) tiles.zero<2>();
    if (two_pixels && two_outputs) tiles.zero<3>();
  } else {
    tiles.load<0>(sums, kSumsStep);
    if (two_outputs) tiles.load<1>(sums + 16, kSumsStep);
    if (two_pixels) tiles.load<2>(below, kSumsStep);
    if (two_pixels && two_outputs) tiles.load<3>(below + 16, kSumsStep);
  }
  for (int64_t s = 0; s < steps; ++s, weights += kStepWeights) {
    const char* at = pixels + offsets[s];
    tiles.load<6>(weights, 64);
    tiles.load<4>(at, pixel_step);
    tiles.multiply<0, 4, 6>();
    if (two_outputs) {
      tiles.load<7>(weights + kStepWeights / 2, 64);
      tiles.multiply<1, 4, 7>();
    }
    if (two_pixels) {
      tiles.load<5>(at + kTileRows * pixel_step, pixel_step);
      tiles.multiply<2, 5, 6>();
      if (two_outputs) tiles.multiply<3, 5, 7>();
    }
  }
  tiles.store<0>(sums, kSumsStep);
  if (two_outputs) tiles.store<1>(sums + 16, kSumsStep);
  if (two_pixels) tiles.store<2>(below, kSumsStep);
  if (two_pixels && two_outputs) tiles.store<3>(below + 16, kSumsStep);
}

// What a run will be added to and stored into: of channels-last tensors a cache line for each pixel, far from
// the next one, so that it must be asked for in time.
struct RunOutput {
  const uint16_t *residual, *out;  // null for none
  int64_t residual_row, residual_pixel, out_row, out_pixel;
  int64_t columns, row_pixels;  // of the output, and from one row to the next in the run
};

inline void prefetch_outputs(const RunOutput& o, int64_t first, int64_t count) {
  int64_t row = first / o.row_pixels, column = first % o.row_pixels;
  for (int64_t i = 0; i < count; ++i) {
    if (column < o.columns) {
      if (o.residual) __builtin_prefetch(o.residual + row * o.residual_row + column * o.residual_pixel, 0, 2);
      __builtin_prefetch(o.out + row * o.out_row + column * o.out_pixel, 1, 2);
    }
    if (++column == o.row_pixels) ++row, column = 0;
  }
}

template <int kOutputTiles>
void multiply_run(Tiles& tiles, int64_t count, float* sums, const char* pixels, int64_t pixel_step,
                  const int64_t* offsets, const uint16_t* weights, int64_t steps, bool first,
                  const RunOutput& stored) {
  int64_t m = 0;
  for (; m + kTileRows < count; m += 2 * kTileRows) {
    if (stored.out) prefetch_outputs(stored, m, min_of(2 * kTileRows, count - m));
    multiply_steps<2, kOutputTiles>(tiles, sums + m * kTileOutputs, pixels + m * pixel_step, pixel_step,
                                    offsets, weights, steps, first);
  }
  if (m < count)
    multiply_steps<1, kOutputTiles>(tiles, sums + m * kTileOutputs, pixels + m * pixel_step, pixel_step,
                                    offsets, weights, steps, first);
}

// ---------------------------------------------------------------- gather

void gather_pixel_halves(uint16_t* dst, const SourceRow<Bfloat16>& row, int64_t w) {
  const uint16_t* src = row.data + w * row.stride_w;
  if (row.stride_c == 1) {
    std::memcpy(dst, src, row.channels * 2);
  } else {
    for (int64_t c = 0; c < row.channels; ++c) dst[c] = src[c * row.stride_c];
  }
}

// Columns that lie next to each other: pairs of channels are joined to the 32 bits of a lane, and lanes are
// transposed in registers. Lane by lane it took 3 times as long as oneDNN's whole 1x1x1 convolution.
void gather_transposed_halves(uint16_t* dst, int64_t pixel, const SourceRow<Bfloat16>& row, int64_t w,
                              int64_t count) {
  constexpr int64_t kPairs = kLanes;
  for (int64_t c0 = 0; c0 < row.channels; c0 += 2 * kPairs) {
    const int64_t channels = min_of(2 * kPairs, row.channels - c0);
    for_each_block(count, [&](int64_t i0, int64_t columns) {
      const uint16_t* src = row.data + c0 * row.stride_c + w + i0;
      Vec block[kPairs] = {};
      for (int64_t c = 0; c < channels; c += 2) {
        uint16_t low[kLanes] = {}, high[kLanes] = {};
        std::memcpy(low, src + c * row.stride_c, columns * 2);
        if (c + 1 < channels) std::memcpy(high, src + (c + 1) * row.stride_c, columns * 2);
        uint32_t both[kLanes];
        for (int i = 0; i < kLanes; ++i) both[i] = low[i] | uint32_t{high[i]} << 16;
        std::memcpy(&block[c / 2], both, sizeof both);
      }
      transpose(block);
      for (int64_t i = 0; i < columns; ++i) std::memcpy(dst + (i0 + i) * pixel + c0, &block[i], channels * 2);
    });
  }
}

// Source columns [first, first + count), padded where they lie outside; of a row that counts each column
// `1 << shift` times.
void gather_row_halves(uint16_t* dst, int64_t pixel, const SourceRow<Bfloat16>& row, int64_t first,
                       int64_t count, SpatialMode mode, int shift) {
  auto pad = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t w = source_pixel(first + i, row.width, mode);
      if (w >= 0) {
        gather_pixel_halves(dst + i * pixel, row, w >> shift);
      } else {
        std::memset(dst + i * pixel, 0, row.channels * 2);
      }
    }
  };
  const int64_t begin = min_of(max_of(-first, 0), count);
  const int64_t end = max_of(min_of(row.width - first, count), begin);
  pad(0, begin);
  uint16_t* inside = dst + begin * pixel;
  const int64_t w = first + begin, columns = end - begin;
  if (row.stride_c != 1 && row.stride_w == 1 && columns > 0) {
    // At the end of their room, from where they are copied to the front: none is overwritten before it is
    // read.
    const int64_t source = w >> shift, given = ((w + columns - 1) >> shift) + 1 - source;
    uint16_t* const read = inside + (columns - given) * pixel;
    gather_transposed_halves(read, pixel, row, source, given);
    for (int64_t i = 0; shift && i < columns; ++i)
      std::memmove(inside + i * pixel, read + (((w + i) >> shift) - source) * pixel, row.channels * 2);
  } else {
    for (int64_t i = 0; i < columns; ++i) gather_pixel_halves(inside + i * pixel, row, (w + i) >> shift);
  }
  pad(end, count);
}

// Puts the channels of the taps to the right beside each pixel's own; returns how many there are.
int64_t fold_row(uint16_t* row, int64_t pixel, int64_t channels, int64_t columns, int64_t taps,
                 int64_t dilation) {
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t tap = 1; tap < taps; ++tap) {
      uint16_t* to = row + i * pixel + tap * channels;
      if (i + tap * dilation < columns) {
        std::memcpy(to, row + (i + tap * dilation) * pixel, channels * 2);
      } else {  // no output begins here
        std::memset(to, 0, channels * 2);
      }
    }
  return taps * channels;
}

SourceFrame frame_at(const TileConv3d& p, int64_t padded) {
  return source_frame(padded, p.past, p.conv.state != nullptr, p.conv.temporal_mode);
}

void gather(const TileConv3d& p, const TilePiece& piece, uint16_t* gathered) {
  const CausalConv3d& conv = p.conv;
  const int64_t *n = conv.x.size, *k = conv.weight.size;
  const int64_t channels = n[1], padded_channels = p.groups * kTileChannels;
  const int64_t frames = (piece.frames - 1) * conv.stride[0] + conv.dilation[0] * (k[2] - 1) + 1;
  const int64_t rows = (piece.rows - 1) * conv.stride[1] + conv.dilation[1] * (k[3] - 1) + 1;
  const int64_t columns = (piece.columns - 1) * conv.stride[2] + conv.dilation[2] * (k[4] - 1) + 1;
  for (int64_t f = 0; f < frames; ++f) {
    const SourceFrame frame = frame_at(p, piece.frame * conv.stride[0] + f);
    for (int64_t r = 0; r < rows; ++r) {
      uint16_t* dst = gathered + (f * p.input_rows + r) * p.input_columns * p.pixel;
      const int64_t h = source_pixel(piece.row * conv.stride[1] + r - conv.top, n[3], conv.spatial_mode);
      if (frame.origin == FrameOrigin::zero || h < 0) {
        std::memset(dst, 0, columns * p.pixel * 2);
        continue;
      }
      const Tensor5& from = frame.origin == FrameOrigin::state ? *conv.state : conv.x;
      const SourceRow<Bfloat16> row{static_cast<const uint16_t*>(from.data) + piece.batch * from.stride[0] +
                                        frame.index * from.stride[2] + (h >> p.shift) * from.stride[3],
                                    channels, n[4], from.stride[1], from.stride[4]};
      gather_row_halves(dst, p.pixel, row, piece.column * conv.stride[2] - conv.left, columns,
                        conv.spatial_mode, p.shift);
      const int64_t used =
          p.folded ? fold_row(dst, p.pixel, channels, columns, k[4], conv.dilation[2]) : channels;
      if (used < padded_channels)
        for (int64_t i = 0; i < columns; ++i)
          std::memset(dst + i * p.pixel + used, 0, (padded_channels - used) * 2);
    }
  }
}

// ---------------------------------------------------------------- store

// out = sums + bias + residual, for the channels of one block.
void store_block(const TileConv3d& p, const TilePiece& piece, int64_t block, float* sums) {
  const CausalConv3d& conv = p.conv;
  const int64_t first = block * kTileOutputs, channels = min_of(kTileOutputs, conv.out.size[1] - first);
  const auto* bias = static_cast<const uint16_t*>(conv.bias);
  const OutputRow<Bfloat16> none{nullptr, 1, 1};
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t lanes = min_of(kLanes, channels - c);
    const Vec added = bias ? load_some<Bfloat16>(bias + first + c, lanes) : Vec{};
    for (int64_t f = 0; f < piece.frames; ++f)
      for (int64_t r = 0; r < piece.rows; ++r) {
        const int64_t pixel =
            p.runs == 1 ? f * p.run_sums + r * p.input_columns : (f * p.runs + r) * p.run_sums;
        float* row = sums + pixel * kTileOutputs + c;
        if (bias)
          for (int64_t w = 0; w < piece.columns; ++w)
            store(row + w * kTileOutputs, load(row + w * kTileOutputs) + added);
        auto row_of = [&](const Tensor5& t) {
          auto* data = static_cast<uint16_t*>(t.data) + piece.batch * t.stride[0] +
                       (first + c) * t.stride[1] + (piece.frame + f) * t.stride[2] +
                       (piece.row + r) * t.stride[3] + piece.column * t.stride[4];
          return OutputRow<Bfloat16>{data, t.stride[1], t.stride[4]};
        };
        store_row(row_of(conv.out), conv.residual ? row_of(*conv.residual) : none, row, kTileOutputs, lanes,
                  piece.columns);
      }
  }
}

RunOutput run_output(const TileConv3d& p, const TilePiece& piece, int64_t block, int64_t f, int64_t r) {
  RunOutput run{};
  auto first_of = [&](const Tensor5& t) {
    return static_cast<const uint16_t*>(t.data) + piece.batch * t.stride[0] + block * kTileOutputs +
           (piece.frame + f) * t.stride[2] + (piece.row + r) * t.stride[3] + piece.column * t.stride[4];
  };
  const Tensor5 &out = p.conv.out, *residual = p.conv.residual;
  if (out.stride[1] != 1) return run;
  run.out = first_of(out);
  run.out_row = out.stride[3];
  run.out_pixel = out.stride[4];
  if (residual && residual->stride[1] == 1) {
    run.residual = first_of(*residual);
    run.residual_row = residual->stride[3];
    run.residual_pixel = residual->stride[4];
  }
  run.columns = piece.columns;
  run.row_pixels = p.input_columns;
  return run;
}

// ---------------------------------------------------------------- piece

void compute_piece(const TileConv3d& p, const TilePiece& piece, char* scratch) {
  const CausalConv3d& conv = p.conv;
  const int64_t* k = conv.weight.size;
  auto* const gathered = reinterpret_cast<uint16_t*>(scratch);
  auto* const sums = reinterpret_cast<float*>(scratch + gathered_bytes(p));
  auto* const offsets = reinterpret_cast<int64_t*>(scratch + gathered_bytes(p) + sums_bytes(p));
  const int64_t pixel_bytes = p.pixel * 2, row_bytes = p.input_columns * pixel_bytes,
                frame_bytes = p.input_rows * row_bytes;
  gather(p, piece, gathered);

  // Taps that see nothing but zeros at any frame of the piece are the first ones, and add nothing.
  const int64_t last = (piece.frame + piece.frames - 1) * conv.stride[0];
  int64_t first_tap = 0;
  while (first_tap + 1 < k[2] && frame_at(p, last + first_tap * conv.dilation[0]).origin == FrameOrigin::zero)
    ++first_tap;
  const int64_t taps_across = p.folded ? 1 : k[4];
  int64_t steps = 0;
  for (int64_t kt = first_tap; kt < k[2]; ++kt)
    for (int64_t kh = 0; kh < k[3]; ++kh)
      for (int64_t kw = 0; kw < taps_across; ++kw)
        for (int64_t g = 0; g < p.groups; ++g)
          offsets[steps++] = kt * conv.dilation[0] * frame_bytes + kh * conv.dilation[1] * row_bytes +
                             kw * conv.dilation[2] * pixel_bytes + g * kTileChannels * 2;

  const int64_t runs = p.runs == 1 ? 1 : piece.rows;
  const int64_t count = p.runs == 1 ? (piece.rows - 1) * p.input_columns + piece.columns : piece.columns;
  const int64_t step = conv.stride[2] * pixel_bytes;
  const int64_t slabs = (steps + kSlabSteps - 1) / kSlabSteps;
  Tiles tiles;
  for (int64_t block = piece.first_block; block < piece.first_block + piece.blocks; ++block) {
    const uint16_t* weights =
        p.weights + (block * k[2] + first_tap) * k[3] * taps_across * p.groups * kStepWeights;
    const auto multiply =
        conv.out.size[1] - block * kTileOutputs > kTileRows ? multiply_run<2> : multiply_run<1>;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      const int64_t begin = slab * steps / slabs, end = (slab + 1) * steps / slabs;
      const bool last_slab = slab == slabs - 1;
      for (int64_t f = 0; f < piece.frames; ++f)
        for (int64_t r = 0; r < runs; ++r)
          multiply(tiles, count, sums + (f * p.runs + r) * p.run_sums * kTileOutputs,
                   scratch + f * conv.stride[0] * frame_bytes + r * conv.stride[1] * row_bytes, step,
                   offsets + begin, weights + begin * kStepWeights, end - begin, slab == 0,
                   last_slab ? run_output(p, piece, block, f, r) : RunOutput{});
    }
    store_block(p, piece, block, sums);
  }
}

// ---------------------------------------------------------------- pack

void pack_block(const TilePack& p, int64_t block) {
  const Tensor5& w = p.weight;
  const bool folded = is_folded(w);
  const int64_t across = folded ? 1 : w.size[4], taps = w.size[2] * w.size[3] * across;
  const int64_t inputs = folded ? w.size[1] * w.size[4] : w.size[1];  // of a tap
  const int64_t first = block * kTileOutputs, outputs = min_of(kTileOutputs, w.size[0] - first);
  const auto* weights = static_cast<const uint16_t*>(w.data) + first * w.stride[0];
  uint16_t* step = p.packed + block * taps * p.groups * kStepWeights;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t kt = tap / (w.size[3] * across), kh = tap / across % w.size[3], kw = tap % across;
    const uint16_t* src = weights + kt * w.stride[2] + kh * w.stride[3] + kw * w.stride[4];
    for (int64_t g = 0; g < p.groups; ++g, step += kStepWeights) {
      const int64_t count = min_of(kTileChannels, inputs - g * kTileChannels);
      std::memset(step, 0, kStepWeights * 2);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t input = g * kTileChannels + i;
        const uint16_t* from = folded
                                   ? src + input % w.size[1] * w.stride[1] + input / w.size[1] * w.stride[4]
                                   : src + input * w.stride[1];
        for (int64_t o = 0; o < outputs; ++o)
          step[((o / 16 * 16 + i / 2) * 16 + o % 16) * 2 + i % 2] = from[o * w.stride[0]];
      }
    }
  }
}

}  // namespace

namespace CVK_ISA {
extern const TileKernels causal_conv3d_tiles = {pack_block, compute_piece};
}

}  // namespace cvk
