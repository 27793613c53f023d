// The Winograd algorithm for 3x3x3 and 1x3x3 kernels of stride 1, with a sixth of the multiplications.
//
// In space F(4x4, 3x3): tiles of 4x4 output pixels, whose 6x6 input pixels are transformed once per frame.
// In time F(2, 3): a pair of output frames takes four products of transformed frames instead of six; three
// where the input frames come in equal pairs.
//
// Several kernels may be applied to the same frames: phases, each with an output of its own. Where the first
// or the last row (or column) of a kernel is zero, one of the six values of each tile in that direction
// vanishes: such planes are neither packed nor multiplied.
#pragma once

#include "causal_conv3d.h"

namespace cvk {

enum class Isa : int;  // isa.h, which instruction-set units do not include

constexpr int64_t kTilePixels = 4;  // output pixels of a tile in each direction; it reads two more
constexpr int64_t kRead = kTilePixels + 2;
constexpr int64_t kPoints = kRead * kRead;  // transformed values of a tile
constexpr int kSlices = 4;  // transformed values of a kernel of three frames; a kernel of one has 1

// Which of the kRead transformed values in one direction a kernel makes other than zero.
struct PointRange {
  int64_t first, last;
};
struct PointWindow {
  PointRange rows, columns;
};

static inline int64_t point_count(const PointWindow& w) {
  return (w.rows.last - w.rows.first) * (w.columns.last - w.columns.first);
}

// (frame in slot `a` + sign * frame in slot `b`) * slice, added `to` times to each output frame of the step.
struct WinogradProduct {
  int slice;
  int a, b;  // b is -1 where one frame alone enters
  float sign;
  float to[2];
};

// A source frame that a step is the first to need, and where its transform is kept.
struct WinogradLoad {
  SourceFrame frame;
  int slot;
};

// One output frame or a pair of them.
struct WinogradStep {
  int64_t frame;
  int frames;
  WinogradLoad loads[4];
  int load_count;
  WinogradProduct products[kSlices];
  int product_count;
};

// One kernel and its output.
struct WinogradPhase {
  const float* weights;  // packed
  PointWindow points;    // that are packed
  Tensor5 out;
};

// Whether each input frame stands for two equal ones, and the first one for itself alone. A kernel of three
// frames then has three slices, W0 + W1, W2 and W1, each packed as a kernel of one frame, one after another;
// the sizes of its weight are those of a kernel of two frames, because it sees so many.
enum class Doubling : int { none, pairs, first_single };

struct Winograd {
  CausalConv3d conv;  // its weight gives sizes alone, and so does its output: of frames that are not doubled
  const WinogradPhase* phases;
  int64_t phase_count;
  Doubling doubling;
  int slices, slots;
  const WinogradStep* steps;
  int64_t step_count;
  bool frame_by_frame;  // a kernel of one frame: the steps are for frame 0 and hold for every frame
  int64_t tile_rows, tile_columns;  // of one frame
  int64_t band;                     // most tiles that are computed at once
  int64_t block, blocks;            // output channels per packed block, and how many blocks
};

// Consecutive tiles, over all rows, frames (if frame_by_frame) and batches, and a range of output blocks.
struct WinogradItem {
  int64_t first_tile, tiles, first_block, blocks;
};

// Packed weights: [point of the window][slice][block][Cin][channels of the block], zero beyond Cout.
struct WinogradPack {
  Tensor5 weight;
  Dtype dtype;
  PointWindow points;
  int slices;
  int64_t block, blocks;
  float* packed;
};

// What a unit offers. Its functions allocate nothing and start no thread.
struct WinogradKernels {
  int64_t block;
  int64_t (*scratch_floats)(const Winograd& p, int64_t blocks);  // for an item of so many blocks
  void (*pack)(const WinogradPack& p, int64_t block_index, int64_t first_input, int64_t inputs);
  void (*item)(const Winograd& p, const WinogradItem& item, float* scratch);
};

namespace portable {
extern const WinogradKernels causal_conv3d_winograd;
}
namespace avx2 {
extern const WinogradKernels causal_conv3d_winograd;
}
namespace avx512 {
extern const WinogradKernels causal_conv3d_winograd;
}

// The points of a kernel whose row and column of these numbers are zeros: 0 the first, 2 the last, -1 for
// none.
PointWindow winograd_points(int64_t zero_row, int64_t zero_column);

// Floats of the packed weights of these sizes. Throws std::invalid_argument unless they are x3x3 of 1 or 3.
int64_t winograd_packed_floats(const Tensor5& weight, const PointWindow& points, Isa isa);

// Does not look whether the row and the column are zeros that the points tell.
void winograd_pack(const Tensor5& weight, Dtype dtype, const PointWindow& points, float* packed, Isa isa,
                   int num_threads);

// `packed` comes from winograd_pack with all points for the same weight and instruction set. Throws
// std::invalid_argument for arguments that do not fit together, a stride or a dilation among them. The bits
// of the result depend on the instruction set, not on the number of threads.
void causal_conv3d_winograd(const CausalConv3d& conv, const float* packed, Isa isa, int num_threads);

// The same for several kernels of one size. Where frames are doubled, `conv.out` is as if they were not.
void causal_conv3d_winograd(const CausalConv3d& conv, const WinogradPhase* phases, int64_t phase_count,
                            Doubling doubling, Isa isa, int num_threads);

}  // namespace cvk
