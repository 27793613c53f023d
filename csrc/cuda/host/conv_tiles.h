// The tiles of the sm_90a convolution and which one a layer takes, by its channels.
#pragma once

#include <cstdint>

namespace cvk {

// Output pixels x output channels x input channels of one step of a block's main loop, and the percentage of
// the tensor cores' rate that shared memory (128 bytes a clock) can feed. A step of 16 input channels costs
// m n / 128 clocks on the tensor cores (2048 multiply-adds a clock). Each instruction of 64 x n reads
// 32 (64 + n) bytes, m / 64 of them, and the next step's 32 (m + n) bytes are written meanwhile. Counted, not
// measured.
struct ConvTile {
  int m, n, k, percent;
};

static constexpr ConvTile kConvTiles[] = {
    {256, 96, 32, 77},    // 96 channels, and steps that divide 96 and 160
    {256, 128, 64, 89},   // 128, 640
    {256, 192, 64, 100},  // 160, 192, 320, 384
    {128, 256, 64, 100},  // 256, 512
};
static constexpr int kConvTileCount = sizeof(kConvTiles) / sizeof(kConvTiles[0]);

// Time of one output pixel on this tile, up to a factor: the channels filled up to whole tiles and steps.
static constexpr inline int64_t conv_tile_cost(int tile, int64_t in_channels, int64_t out_channels) {
  const ConvTile& t = kConvTiles[tile];
  const int64_t columns = (out_channels + t.n - 1) / t.n * t.n;
  const int64_t depth = (in_channels + t.k - 1) / t.k * t.k;
  return columns * depth * 100 / t.percent;
}

static constexpr inline int choose_conv_tile(int64_t in_channels, int64_t out_channels) {
  int best = 0;
  for (int tile = 1; tile < kConvTileCount; ++tile)
    if (conv_tile_cost(tile, in_channels, out_channels) < conv_tile_cost(best, in_channels, out_channels))
      best = tile;
  return best;
}

}  // namespace cvk
