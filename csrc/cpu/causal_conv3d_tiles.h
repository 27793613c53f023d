// The direct algorithm on matrix tiles (Intel AMX): products of bfloat16, sums in float32.
//
// A tile of the input holds 16 pixels x 32 channels, a tile of the weights 32 channels x 16 outputs, a tile
// of sums 16 pixels x 16 outputs; one instruction multiplies the first two and adds to the third.
#pragma once

#include "causal_conv3d.h"

namespace cvk {

constexpr int64_t kTileRows = 16;      // pixels of a tile of the input
constexpr int64_t kTileChannels = 32;  // channels of it
constexpr int64_t kTileOutputs = 32;   // output channels of two tiles of weights, packed together
constexpr int64_t kStepWeights = kTileChannels * kTileOutputs;  // of a step: one tap, one group of channels

// A convolution cut into pieces, with its weights packed.
//
// A piece gathers what it reads into [frame][row][column][channel], padded. With a stride of 1 in space the
// output pixels of a frame are then one run, two junk pixels between its rows; otherwise each row is a run.
//
// Where the channels of all taps of a kernel's row fit into a tile, a gathered pixel holds them all, and the
// row is one tap: `folded`.
struct TileConv3d {
  CausalConv3d conv;
  const uint16_t* weights;  // [block of outputs][tap][group of inputs][2][pair of inputs][16 outputs][2]
  int64_t past;             // frames padded in front
  bool folded;
  int shift;  // 1 if every pixel of the input stands for 2 x 2; the sizes of x and the state count those
  int64_t groups, blocks;                           // of input channels, of output channels
  int64_t frames, rows, columns;                    // of the output, in a piece
  int64_t input_frames, input_rows, input_columns;  // that it reads
  int64_t pixel;                                    // elements from one gathered pixel to the next
  int64_t runs, run_pixels, run_sums;               // runs of a frame; output pixels and sums of each
  int64_t splits;                                   // parts into which the output channels are cut
};

struct TilePiece {
  int64_t batch, frame, frames, row, rows, column, columns;  // in the output
  int64_t first_block, blocks;
};

struct TilePack {
  Tensor5 weight;
  int64_t groups;
  uint16_t* packed;
};

// The gathered input, the sums of one block of outputs, and where each step reads.
static inline int64_t gathered_bytes(const TileConv3d& p) {
  // A last tile of pixels may begin with one that is computed and reach over 15 that are not.
  const int64_t junk = kTileRows * p.conv.stride[2];
  const int64_t pixels = p.input_frames * p.input_rows * p.input_columns + junk;
  return (pixels * p.pixel * 2 + 63) / 64 * 64;
}
static inline int64_t sums_bytes(const TileConv3d& p) {
  return p.frames * p.runs * p.run_sums * kTileOutputs * 4;
}
static inline int64_t steps_of(const TileConv3d& p) {
  const int64_t* k = p.conv.weight.size;
  return k[2] * k[3] * (p.folded ? 1 : k[4]) * p.groups;
}
static inline bool is_folded(const Tensor5& weight) {
  return weight.size[4] > 1 && weight.size[1] * weight.size[4] <= kTileChannels;
}

// What a unit offers. Its functions allocate nothing and start no thread; `piece` needs scratch that starts
// on a cache line.
struct TileKernels {
  void (*pack)(const TilePack& p, int64_t block_index);
  void (*piece)(const TileConv3d& p, const TilePiece& piece, char* scratch);
};

namespace portable {  // a stand-in for the instructions
extern const TileKernels causal_conv3d_tiles;
}
namespace amx {
extern const TileKernels causal_conv3d_tiles;
}

// Whether the build holds the kernels and the processor and the system let this process use tiles.
bool has_tiles();

// Bytes of the packed weights of these sizes.
int64_t tiles_packed_bytes(const Tensor5& weight);

// Of bfloat16 weights.
void tiles_pack(const Tensor5& weight, uint16_t* packed, int num_threads);

// `packed` comes from tiles_pack. Throws std::invalid_argument for arguments that do not fit together,
// another dtype than bfloat16 among them, or if `emulated` is false and there are no tiles. The bits of the
// result do not depend on the number of threads.
//
// If `doubled`, each pixel of x and of the state is read as 2 x 2 equal ones, and their heights and widths
// are given so: twice those of what lies in memory.
void causal_conv3d_tiles(const CausalConv3d& conv, const uint16_t* packed, bool doubled, bool emulated,
                         int num_threads);

}  // namespace cvk
