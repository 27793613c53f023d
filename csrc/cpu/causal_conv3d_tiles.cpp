#include "causal_conv3d_tiles.h"

#include <algorithm>
#include <string>

#include "../common/check.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"

#if defined(CVK_HAVE_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cvk {

namespace {

constexpr const char* kOp = "causal_conv3d";

// The gathered input of a piece shares a second-level cache of 2 MiB (every processor with tiles has one)
// with the weights that pass through and the sums of a block.
constexpr int64_t kGatheredBytes = 1024 * 1024;
constexpr int64_t kPiecePixels = 1024;

bool ask_for_tiles() {
#if defined(CVK_HAVE_AMX) && defined(__linux__)
  if (supported_isas().front() != Isa::avx512) return false;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if ((d & kBfloat16) == 0 || (d & kTiles) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl, asm/prctl.h
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const TileKernels& kernels_of(bool emulated) {
#ifdef CVK_HAVE_AMX
  if (!emulated) return amx::causal_conv3d_tiles;
#endif
  (void)emulated;
  return portable::causal_conv3d_tiles;
}

int64_t reach(int64_t outputs, int64_t kernel, int64_t stride, int64_t dilation) {
  return (outputs - 1) * stride + dilation * (kernel - 1) + 1;
}

// Sizes that follow from how much output a piece holds.
void set_piece(TileConv3d& p, int64_t frames, int64_t rows, int64_t columns) {
  const CausalConv3d& conv = p.conv;
  const int64_t* k = conv.weight.size;
  p.frames = frames;
  p.rows = rows;
  p.columns = columns;
  p.input_frames = reach(frames, k[2], conv.stride[0], conv.dilation[0]);
  p.input_rows = reach(rows, k[3], conv.stride[1], conv.dilation[1]);
  p.input_columns = reach(columns, k[4], conv.stride[2], conv.dilation[2]);
  const bool flat = conv.stride[1] == 1 && conv.stride[2] == 1;
  p.runs = flat ? 1 : rows;
  p.run_pixels = flat ? (rows - 1) * p.input_columns + columns : columns;
  p.run_sums = ceil_div(p.run_pixels, kTileRows) * kTileRows;
}

bool fits(const TileConv3d& p) {
  return gathered_bytes(p) <= kGatheredBytes && p.frames * p.runs * p.run_sums <= kPiecePixels;
}

int64_t count_pieces(const TileConv3d& p) {
  const int64_t* n = p.conv.out.size;
  return n[0] * ceil_div(n[2], p.frames) * ceil_div(n[3], p.rows) * ceil_div(n[4], p.columns);
}

// The largest part of `size` in even shares for which `fitting` holds; 1 if none does.
template <class Fitting>
int64_t even_share(int64_t size, const Fitting& fitting) {
  int64_t low = 1, high = size;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (fitting(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return ceil_div(size, ceil_div(size, low));
}

void choose_piece(TileConv3d& p, int num_threads) {
  const int64_t *n = p.conv.out.size, *k = p.conv.weight.size;
  auto fitting = [&](int64_t frames, int64_t rows, int64_t columns) {
    set_piece(p, frames, rows, columns);
    return fits(p);
  };
  const int64_t columns =
      even_share(n[4], [&](int64_t c) { return fitting(1, std::min<int64_t>(n[3], 4), c); });
  const int64_t rows = even_share(n[3], [&](int64_t r) { return fitting(1, r, columns); });
  const bool whole = rows == n[3] && columns == n[4];
  const int64_t frames = whole ? even_share(n[2], [&](int64_t f) { return fitting(f, rows, columns); }) : 1;
  set_piece(p, frames, rows, columns);

  // Enough pieces for every thread: frames and rows are gathered again at their borders, and all of them for
  // every part of the outputs, so whatever is smaller is cut.
  p.splits = 1;
  const int64_t weight_bytes = k[0] * k[1] * k[2] * k[3] * k[4] * 2;
  while (count_pieces(p) * p.splits < 3 * int64_t{num_threads}) {
    if (p.frames > 1) {
      set_piece(p, (p.frames + 1) / 2, p.rows, p.columns);
    } else if (2 * p.splits <= p.blocks && (weight_bytes > gathered_bytes(p) || p.rows == 1)) {
      p.splits *= 2;
    } else if (p.rows > 1) {
      set_piece(p, 1, (p.rows + 1) / 2, p.columns);
    } else {
      break;
    }
  }
}

TilePiece piece_at(const TileConv3d& p, int64_t index) {
  const int64_t* n = p.conv.out.size;
  const int64_t across = ceil_div(n[4], p.columns), down = ceil_div(n[3], p.rows),
                along = ceil_div(n[2], p.frames);
  TilePiece piece;
  piece.column = index % across * p.columns;
  index /= across;
  piece.row = index % down * p.rows;
  index /= down;
  piece.frame = index % along * p.frames;
  index /= along;
  piece.batch = index % n[0];
  const int64_t split = index / n[0];
  piece.first_block = split * p.blocks / p.splits;
  piece.blocks = (split + 1) * p.blocks / p.splits - piece.first_block;
  piece.columns = std::min(p.columns, n[4] - piece.column);
  piece.rows = std::min(p.rows, n[3] - piece.row);
  piece.frames = std::min(p.frames, n[2] - piece.frame);
  return piece;
}

int64_t groups_of(const Tensor5& weight) { return ceil_div(weight.size[1], kTileChannels); }
int64_t blocks_of(const Tensor5& weight) { return ceil_div(weight.size[0], kTileOutputs); }

}  // namespace

bool has_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

int64_t tiles_packed_bytes(const Tensor5& weight) {
  const int64_t taps = weight.size[2] * weight.size[3] * (is_folded(weight) ? 1 : weight.size[4]);
  return blocks_of(weight) * taps * groups_of(weight) * kStepWeights * 2;
}

void tiles_pack(const Tensor5& weight, uint16_t* packed, int num_threads) {
  check_threads("tiles_pack", num_threads);
  check_tensor("tiles_pack", "weight", weight);
  const TilePack pack{weight, groups_of(weight), packed};
  const TileKernels& kernels = kernels_of(!has_tiles());
  parallel_for(blocks_of(weight), num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) kernels.pack(pack, i);
  });
}

void causal_conv3d_tiles(const CausalConv3d& conv, const uint16_t* packed, bool doubled, bool emulated,
                         int num_threads) {
  check_threads(kOp, num_threads);
  check_causal_conv3d(conv);
  require(conv.dtype == Dtype::bfloat16 && conv.weight_dtype == Dtype::bfloat16, kOp,
          "got another dtype than bfloat16, the one that matrix tiles multiply");
  require(emulated || has_tiles(), kOp, "this build or processor has no matrix tiles");
  if (element_count(conv.out) == 0) return;

  TileConv3d p{};
  p.conv = conv;
  p.weights = packed;
  p.past = past_frames(conv);
  p.folded = is_folded(conv.weight);
  p.shift = doubled ? 1 : 0;
  p.groups = groups_of(conv.weight);
  p.blocks = blocks_of(conv.weight);
  p.pixel = p.groups * kTileChannels;
  choose_piece(p, num_threads);

  const int64_t pieces = count_pieces(p) * p.splits;
  const int threads = static_cast<int>(std::min<int64_t>(pieces, num_threads));
  const int64_t bytes = gathered_bytes(p) + sums_bytes(p) + steps_of(p) * int64_t{sizeof(int64_t)};
  const int64_t per_thread = round_up_to_line(ceil_div(bytes, sizeof(float)));
  Scratch scratch(per_thread * threads);
  const TileKernels& kernels = kernels_of(emulated);
  parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int thread) {
    char* own = reinterpret_cast<char*>(scratch.data() + thread * per_thread);
    for (int64_t i = begin; i < end; ++i) kernels.piece(p, piece_at(p, i), own);
  });
}

}  // namespace cvk
