// The direct algorithm: what the driver hands to the unit of one instruction set, and the units themselves.
#pragma once

#include "causal_conv3d.h"

namespace cvk {

enum class Isa : int;  // isa.h, which instruction-set units do not include

// Rows are added to a tile up to this many output pixels: enough for a slab of weights to be used often.
constexpr int64_t kRowPixels = 96;

// A convolution cut into tiles of output rows and columns of one frame, with the weights packed.
struct DirectConv3d {
  CausalConv3d conv;
  int64_t past;           // frames padded in front
  int64_t block, blocks;  // output channels per packed block, and how many blocks
  float* weights;         // [blocks][kT][kH][kW][Cin][block], zero beyond Cout
  float* bias;            // [blocks][block], zero beyond Cout
  int64_t tile_rows, tile_columns;
  int64_t input_columns;  // that a tile of tile_columns reads
  int64_t pixel_floats;   // from one gathered pixel to the next: Cin, or a little more
};

struct DirectTile {
  int64_t batch, frame, row, rows, column, columns;  // in the output
};

// The gathered rows, then the sums [blocks][tile_rows][tile_columns][block].
static inline int64_t gathered_floats(const DirectConv3d& p) {
  return p.tile_rows * p.input_columns * p.pixel_floats;
}
static inline int64_t scratch_floats(const DirectConv3d& p) {
  return gathered_floats(p) + p.blocks * p.tile_rows * p.tile_columns * p.block;
}

// What a unit offers. Its functions allocate nothing and start no thread.
struct DirectKernels {
  int64_t block;    // output channels that its micro-kernel computes at once
  int64_t columns;  // output columns that its micro-kernel computes at once
  void (*pack)(const DirectConv3d& p, int64_t block_index);
  void (*tile)(const DirectConv3d& p, const DirectTile& tile, float* scratch);
};

namespace portable {
extern const DirectKernels causal_conv3d_direct;
}
namespace avx2 {
extern const DirectKernels causal_conv3d_direct;
}
namespace avx512 {
extern const DirectKernels causal_conv3d_direct;
}

// Throws std::invalid_argument for arguments that do not fit together. The bits of the result depend
// on the instruction set, not on the number of threads.
void causal_conv3d_direct(const CausalConv3d& conv, Isa isa, int num_threads);

}  // namespace cvk
