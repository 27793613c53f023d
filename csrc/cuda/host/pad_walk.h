// What every thread of the CUDA padding kernels does, as functions that compile for the host as well: tests
// run them there, thread after thread, on whole small problems.
//
// Two walks. `pad_items`: an item is the widest word that every address and stride allows, up to 16 bytes;
// blocks take 1024 items of one padded frame, in the order of memory. `pad_tile_*`: a transpose between
// layouts, a tile of pixels and channels at a time through shared memory.
#pragma once

#include <cstdint>

#include "../../common/index.h"
#include "fast_divide.h"

#if defined(__CUDA_ARCH__)
#define CVK_UNROLL_ON_DEVICE _Pragma("unroll")
#else
#define CVK_UNROLL_ON_DEVICE
#endif

namespace cvk {

#if defined(__CUDACC__)
using Bits128 = uint4;
#else
struct alignas(16) Bits128 {
  uint32_t x, y, z, w;
};
#endif

// A tensor (B, C, T, H, W) of items; strides in items.
struct PadTensor {
  char* data;
  int64_t stride[5];
};

// Items of a padded frame that are written: all of them, or the halo alone.
struct PadRegion {
  bool halo_only;
  uint32_t items, chunks;  // chunks of kPadItemsPerBlock
  FastDivide by_chunks;
  FastDivide by_inner;  // the size of the dimension that runs fastest: channels, or pixels of the region
};

struct PadWalk {
  PadTensor out, x, state;
  bool has_state, channels_inner;
  int past, top, left, height, width;  // of the body, in items
  int out_height, out_width, channels;
  uint32_t halo_rows;  // top + bottom
  FastDivide by_out_width, by_sides;
  TemporalMode temporal_mode;
  SpatialMode spatial_mode;
  PadRegion head, body;  // a frame in front, a frame of the body
  uint32_t head_chunks, blocks;
  FastDivide by_batch;  // blocks of one batch entry; those of the frames in front come first
};

static constexpr int kPadThreads = 256;
static constexpr int kPadUnroll = 4;  // loads of a thread that are under way at once
static constexpr int kPadItemsPerBlock = kPadThreads * kPadUnroll;

struct PadFrame {
  int64_t b, t;
  uint32_t first;  // item
  bool in_front;
};

// The padded frame and the first item of a block.
CVK_HD static inline PadFrame pad_frame(const PadWalk& walk, uint32_t block) {
  const uint32_t b = walk.by_batch(block);
  uint32_t rest = block - b * walk.by_batch.divisor;
  const bool in_front = rest < walk.head_chunks;
  const PadRegion& region = in_front ? walk.head : walk.body;
  if (!in_front) rest -= walk.head_chunks;
  const uint32_t t = region.by_chunks(rest);
  const uint32_t chunk = rest - t * region.chunks;
  return {b, in_front ? t : walk.past + int64_t{t}, chunk * kPadItemsPerBlock, in_front};
}

struct PadPixel {
  int h, w;
};

// The pixel of a padded frame. A halo is walked as its full rows, above and below, then the sides.
CVK_HD static inline PadPixel pad_pixel(const PadWalk& walk, bool halo_only, uint32_t pixel) {
  const uint32_t width = walk.by_out_width.divisor;
  const uint32_t rows = walk.halo_rows * width;
  if (!halo_only || pixel < rows) {
    const uint32_t row = walk.by_out_width(pixel);
    const int h = static_cast<int>(row), w = static_cast<int>(pixel - row * width);
    return {halo_only && h >= walk.top ? h + walk.height : h, w};
  }
  pixel -= rows;
  const uint32_t row = walk.by_sides(pixel);
  const int w = static_cast<int>(pixel - row * walk.by_sides.divisor);
  return {walk.top + static_cast<int>(row), w < walk.left ? w : w + walk.width};
}

// Element offset of a padded pixel's source in `frame`'s tensor, or -1 for zero.
CVK_HD static inline int64_t pad_source(const PadWalk& walk, const PadTensor& from, PadPixel pixel) {
  const int64_t h = source_pixel(pixel.h - walk.top, walk.height, walk.spatial_mode);
  const int64_t w = source_pixel(pixel.w - walk.left, walk.width, walk.spatial_mode);
  if (h < 0 || w < 0) return -1;
  return h * from.stride[3] + w * from.stride[4];
}

// Everything one thread of a block copies; returns how many items it wrote.
template <class Item>
CVK_HD static inline int pad_items(const PadWalk& walk, uint32_t block, int thread) {
  const PadFrame at = pad_frame(walk, block);
  const PadRegion& region = at.in_front ? walk.head : walk.body;
  const SourceFrame frame = source_frame(at.t, walk.past, walk.has_state, walk.temporal_mode);
  const PadTensor& from = frame.origin == FrameOrigin::state ? walk.state : walk.x;
  Item* to = reinterpret_cast<Item*>(walk.out.data) + at.b * walk.out.stride[0] + at.t * walk.out.stride[2];
  const Item* source = reinterpret_cast<const Item*>(from.data);
  if (frame.origin != FrameOrigin::zero) source += at.b * from.stride[0] + frame.index * from.stride[2];

  Item values[kPadUnroll];
  int64_t targets[kPadUnroll];
  CVK_UNROLL_ON_DEVICE
  for (int i = 0; i < kPadUnroll; ++i) {
    const uint32_t item = at.first + i * kPadThreads + thread;
    targets[i] = -1;
    values[i] = Item{};
    if (item >= region.items) continue;
    const uint32_t outer = region.by_inner(item), inner = item - outer * region.by_inner.divisor;
    const int64_t c = walk.channels_inner ? inner : outer;
    const PadPixel pixel = pad_pixel(walk, region.halo_only, walk.channels_inner ? outer : inner);
    targets[i] = c * walk.out.stride[1] + pixel.h * walk.out.stride[3] + pixel.w * walk.out.stride[4];
    const int64_t offset = frame.origin == FrameOrigin::zero ? -1 : pad_source(walk, from, pixel);
    if (offset >= 0) values[i] = source[c * from.stride[1] + offset];
  }
  int written = 0;
  CVK_UNROLL_ON_DEVICE
  for (int i = 0; i < kPadUnroll; ++i) {
    if (targets[i] < 0) continue;
    to[targets[i]] = values[i];
    ++written;
  }
  return written;
}

// A block of the transpose writes a tile of one padded row: kSide pixels by kSide channels.
struct PadTiles {
  uint32_t blocks;
  FastDivide by_row, by_pixels, by_height, by_frames;  // tiles of a row, those along its pixels; H; T
};

template <class Item>
struct PadTile {
  static constexpr int kSide = sizeof(Item) < 8 ? 64 : 32;
  // An odd number of 4-byte words from row to row (8-byte items: a half-warp at a time), so that the lanes
  // that read a column of the tile find it in different banks of shared memory.
  static constexpr int kPitch = kSide + (sizeof(Item) < 4 ? 4 / sizeof(Item) : 1);
  static constexpr int kItems = kSide * kPitch;
};

struct PadTileAt {
  int64_t b, t;
  int h, w0, c0;
};

template <class Item>
CVK_HD static inline PadTileAt pad_tile_at(const PadTiles& tiles, uint32_t block) {
  const uint32_t row = tiles.by_row(block), tile = block - row * tiles.by_row.divisor;
  const uint32_t c = tiles.by_pixels(tile), w = tile - c * tiles.by_pixels.divisor;
  const uint32_t frame = tiles.by_height(row), h = row - frame * tiles.by_height.divisor;
  const uint32_t b = tiles.by_frames(frame), t = frame - b * tiles.by_frames.divisor;
  constexpr int side = PadTile<Item>::kSide;
  return {b, t, static_cast<int>(h), static_cast<int>(w) * side, static_cast<int>(c) * side};
}

// First half: the source into the tile, row c and column w, neighbouring threads along the source's memory.
template <class Item>
CVK_HD static inline void pad_tile_load(const PadWalk& walk, const PadTiles& tiles, uint32_t block,
                                        int thread, Item* tile) {
  constexpr int side = PadTile<Item>::kSide, pitch = PadTile<Item>::kPitch;
  const PadTileAt at = pad_tile_at<Item>(tiles, block);
  const SourceFrame frame = source_frame(at.t, walk.past, walk.has_state, walk.temporal_mode);
  const PadTensor& from = frame.origin == FrameOrigin::state ? walk.state : walk.x;
  const Item* source = reinterpret_cast<const Item*>(from.data);
  if (frame.origin != FrameOrigin::zero) source += at.b * from.stride[0] + frame.index * from.stride[2];
  for (int i = thread; i < side * side; i += kPadThreads) {
    const int lane = i % side, step = i / side;
    const int c = walk.channels_inner ? step : lane, w = walk.channels_inner ? lane : step;
    if (at.c0 + c >= walk.channels || at.w0 + w >= walk.out_width) continue;
    const int64_t offset =
        frame.origin == FrameOrigin::zero ? -1 : pad_source(walk, from, PadPixel{at.h, at.w0 + w});
    tile[c * pitch + w] = offset < 0 ? Item{} : source[(at.c0 + c) * from.stride[1] + offset];
  }
}

// Second half, after all threads of the block have loaded: the tile to the output, neighbouring threads along
// the output's memory. Returns how many items the thread wrote.
template <class Item>
CVK_HD static inline int pad_tile_store(const PadWalk& walk, const PadTiles& tiles, uint32_t block,
                                        int thread, const Item* tile) {
  constexpr int side = PadTile<Item>::kSide, pitch = PadTile<Item>::kPitch;
  const PadTileAt at = pad_tile_at<Item>(tiles, block);
  const int64_t* stride = walk.out.stride;
  Item* to = reinterpret_cast<Item*>(walk.out.data) + at.b * stride[0] + at.t * stride[2] + at.h * stride[3];
  int written = 0;
  for (int i = thread; i < side * side; i += kPadThreads) {
    const int lane = i % side, step = i / side;
    const int c = walk.channels_inner ? lane : step, w = walk.channels_inner ? step : lane;
    if (at.c0 + c >= walk.channels || at.w0 + w >= walk.out_width) continue;
    to[(at.c0 + c) * stride[1] + (at.w0 + w) * stride[4]] = tile[c * pitch + w];
    ++written;
  }
  return written;
}

}  // namespace cvk
