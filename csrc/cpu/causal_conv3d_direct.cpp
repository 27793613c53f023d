#include "causal_conv3d_direct.h"

#include <algorithm>

#include "../common/check.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"

namespace cvk {

namespace {

// Gathered rows and sums of a tile, 256 KiB: with the slab of weights in use they stay in a second-level
// cache of 512 KiB.
constexpr int64_t kTileFloats = 64 * 1024;

int64_t count_tiles(const DirectConv3d& p) {
  const int64_t* n = p.conv.out.size;
  return n[0] * n[2] * ceil_div(n[3], p.tile_rows) * ceil_div(n[4], p.tile_columns);
}

void choose_tile(DirectConv3d& p, int64_t kernel_columns, int num_threads) {
  const CausalConv3d& conv = p.conv;
  const int64_t rows = conv.out.size[3], columns = conv.out.size[4];
  // Pixels a multiple of 2 KiB apart would share few cache sets.
  const int64_t channels = conv.x.size[1];
  p.pixel_floats = channels % 512 == 0 ? channels + kCacheLineFloats : channels;

  const int64_t floats_per_column = conv.stride[2] * p.pixel_floats + p.blocks * p.block;
  const int64_t fitting =
      std::max(kTileFloats / floats_per_column / kernel_columns, int64_t{1}) * kernel_columns;
  p.tile_columns = std::min(columns, fitting);
  p.input_columns = (p.tile_columns - 1) * conv.stride[2] + conv.dilation[2] * (conv.weight.size[4] - 1) + 1;
  p.tile_rows = std::max(std::min({rows, kRowPixels / p.tile_columns, fitting / p.tile_columns}), int64_t{1});
  while (p.tile_rows > 1 && count_tiles(p) < 4 * int64_t{num_threads}) p.tile_rows = (p.tile_rows + 1) / 2;
}

DirectTile tile_at(const DirectConv3d& p, int64_t index) {
  const int64_t* n = p.conv.out.size;
  const int64_t across = ceil_div(n[4], p.tile_columns), down = ceil_div(n[3], p.tile_rows);
  DirectTile tile;
  tile.column = index % across * p.tile_columns;
  tile.row = index / across % down * p.tile_rows;
  tile.frame = index / across / down % n[2];
  tile.batch = index / across / down / n[2];
  tile.columns = std::min(p.tile_columns, n[4] - tile.column);
  tile.rows = std::min(p.tile_rows, n[3] - tile.row);
  return tile;
}

}  // namespace

void causal_conv3d_direct(const CausalConv3d& conv, Isa isa, int num_threads) {
  check_threads("causal_conv3d", num_threads);
  check_causal_conv3d(conv);
  if (element_count(conv.out) == 0) return;

  const DirectKernels& kernels = CVK_TABLE_OF(isa, causal_conv3d_direct);
  DirectConv3d p{};
  p.conv = conv;
  p.past = past_frames(conv);
  p.block = kernels.block;
  p.blocks = ceil_div(conv.out.size[1], p.block);
  choose_tile(p, kernels.columns, num_threads);

  const int64_t taps = conv.weight.size[2] * conv.weight.size[3] * conv.weight.size[4];
  const int64_t packed = p.blocks * taps * conv.x.size[1] * p.block;
  Scratch weights(packed + p.blocks * p.block);
  p.weights = weights.data();
  p.bias = p.weights + packed;

  const int64_t tiles = count_tiles(p), per_thread = round_up_to_line(scratch_floats(p));
  const int threads = static_cast<int>(std::min<int64_t>(tiles, num_threads));
  Scratch scratch(per_thread * threads);

  parallel_for(p.blocks, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) kernels.pack(p, i);
  });
  parallel_for(tiles, threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i)
      kernels.tile(p, tile_at(p, i), scratch.data() + thread * per_thread);
  });
}

}  // namespace cvk
