#include "causal_conv3d_winograd.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "../common/check.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_conv3d";

// Tiles of a band. With fewer, a product's weights are loaded for too few multiplications; with more, nothing
// is gained on two Zen 4 cores (128 channels: 53, 47, 46 and 47 ms for 24, 48, 72 and 96).
constexpr int64_t kFewTiles = 24;
constexpr int64_t kManyTiles = 72;

// Transformed frames and sums of one thread, 12 MiB: they stay in its share of the last-level cache.
constexpr int64_t kScratchFloats = 3 * 1024 * 1024;

int count_slices(const Tensor5& weight) { return weight.size[2] == 1 ? 1 : kSlices; }

void check_weight(const Tensor5& weight) {
  const int64_t* k = weight.size;
  require((k[2] == 1 || k[2] == 3) && k[3] == 3 && k[4] == 3, kOp,
          "weight has sizes " + sizes_text(k, 5) + ", expected a kernel of 3x3x3 or 1x3x3 for Winograd");
}

// ---------------------------------------------------------------- plan in time

bool same(const SourceFrame& a, const SourceFrame& b) {
  return a.origin == b.origin && (a.origin == FrameOrigin::zero || a.index == b.index);
}

// Keeps the transforms of the last frames; a frame that is no longer needed leaves its slot to a new one.
class Slots {
 public:
  int slot_of(const SourceFrame& frame, const std::vector<SourceFrame>& needed, WinogradStep& step) {
    for (size_t i = 0; i < kept_.size(); ++i)
      if (same(kept_[i], frame)) return static_cast<int>(i);
    size_t slot = 0;
    while (slot < kept_.size() && holds_one_of(needed, slot)) ++slot;
    if (slot == kept_.size()) kept_.push_back(frame);
    kept_[slot] = frame;
    step.loads[step.load_count++] = {frame, static_cast<int>(slot)};
    return static_cast<int>(slot);
  }
  int count() const { return static_cast<int>(kept_.size()); }

 private:
  bool holds_one_of(const std::vector<SourceFrame>& needed, size_t slot) const {
    return std::any_of(needed.begin(), needed.end(),
                       [&](const SourceFrame& frame) { return same(frame, kept_[slot]); });
  }
  std::vector<SourceFrame> kept_;
};

// Adds (a + sign * b) * slice to the step, unless it is zero: past frames are often equal, or zeros.
void add_product(WinogradStep& step, int slice, const SourceFrame& a, float sign, const SourceFrame& b,
                 float to_first, float to_second, const std::vector<SourceFrame>& needed, Slots& slots) {
  const bool no_a = a.origin == FrameOrigin::zero, no_b = b.origin == FrameOrigin::zero;
  if ((no_a && no_b) || (same(a, b) && sign < 0)) return;
  WinogradProduct product{slice, -1, -1, sign, {to_first, to_second}};
  float scale = 1;
  if (no_a || no_b || same(a, b)) {
    product.a = slots.slot_of(no_a ? b : a, needed, step);
    scale = no_a ? sign : no_b ? 1.0f : 2.0f;
  } else {
    product.a = slots.slot_of(a, needed, step);
    product.b = slots.slot_of(b, needed, step);
  }
  product.to[0] *= scale;
  product.to[1] *= scale;
  step.products[step.product_count++] = product;
}

// With d0..d3 the frames seen: m0 = (d0 - d2) G0, m1 = (d1 + d2) G1, m2 = (d2 - d1) G2, m3 = (d1 - d3) G3,
// the first output is m0 + m1 + m2 and the second m1 - m2 - m3 (Winograd's F(2, 3), see
// docs/design/winograd.md).
WinogradStep make_step(const Winograd& p, int64_t frame, int frames, Slots& slots) {
  const CausalConv3d& conv = p.conv;
  WinogradStep step{};
  step.frame = frame;
  step.frames = frames;
  std::vector<SourceFrame> d;
  for (int64_t i = 0; i < conv.weight.size[2] + frames - 1; ++i)
    d.push_back(source_frame(frame + i, past_frames(conv), conv.state != nullptr, conv.temporal_mode));
  const SourceFrame none{FrameOrigin::zero, 0};
  if (d.size() == 1) {
    add_product(step, 0, d[0], 1, none, 1, 0, d, slots);
  } else if (frames == 1 && d[0].origin == FrameOrigin::zero && d[1].origin == FrameOrigin::zero) {
    add_product(step, 3, d[2], 1, none, 1, 0, d, slots);  // G3 is the kernel's last frame
  } else {
    const float second = frames == 2 ? 1.0f : 0.0f;
    add_product(step, 0, d[0], -1, d[2], 1, 0, d, slots);
    add_product(step, 1, d[1], 1, d[2], 1, second, d, slots);
    add_product(step, 2, d[2], -1, d[1], 1, -second, d, slots);
    if (frames == 2) add_product(step, 3, d[1], -1, d[3], 0, -1, d, slots);
  }
  return step;
}

// With a and b the frames before and at a pair of equal ones, the outputs are (W0 + W1) a + W2 b and
// W0 a + (W1 + W2) b, which is W1 (b - a) more: three products. A single first frame is its own past.
WinogradStep make_doubled_step(const Winograd& p, int64_t frame, Slots& slots) {
  const CausalConv3d& conv = p.conv;
  const bool single = p.doubling == Doubling::first_single, alone = single && frame == 0;
  WinogradStep step{};
  step.frame = alone ? 0 : 2 * frame - (single ? 1 : 0);
  step.frames = alone ? 1 : 2;
  std::vector<SourceFrame> d;
  for (int64_t i = 0; i < 2; ++i)
    d.push_back(source_frame(frame + i, past_frames(conv), conv.state != nullptr, conv.temporal_mode));
  const SourceFrame none{FrameOrigin::zero, 0};
  const float second = alone ? 0.0f : 1.0f;
  add_product(step, 0, d[0], 1, none, 1, second, d, slots);
  add_product(step, 1, d[1], 1, none, 1, second, d, slots);
  if (!alone) add_product(step, 2, d[1], -1, d[0], 0, 1, d, slots);
  return step;
}

// Pairs of frames, and one alone if their number is odd: the first one where nothing precedes it, which
// then takes one product instead of three.
std::vector<WinogradStep> make_steps(Winograd& p) {
  const int64_t frames = p.frame_by_frame ? 1 : p.conv.out.size[2];
  const bool alone_first = past_frames(p.conv) > 0 && !p.conv.state;
  Slots slots;
  std::vector<WinogradStep> steps;
  if (p.doubling != Doubling::none) {
    for (int64_t frame = 0; frame < frames; ++frame) steps.push_back(make_doubled_step(p, frame, slots));
    p.slots = slots.count();
    return steps;
  }
  for (int64_t frame = 0; frame < frames;) {
    const bool alone = frame + 1 == frames || (frame == 0 && frames % 2 && alone_first);
    steps.push_back(make_step(p, frame, alone ? 1 : 2, slots));
    frame += steps.back().frames;
  }
  p.slots = slots.count();
  return steps;
}

// ---------------------------------------------------------------- cut in space

// Bands of tiles; where they are too few to share, each is shared by cutting the output channels into groups.
// Every thread gets the same number of items.
std::vector<WinogradItem> make_items(Winograd& p, int64_t threads) {
  const int64_t frames = p.frame_by_frame ? p.conv.x.size[2] : 1;
  const int64_t tiles = p.conv.x.size[0] * frames * p.tile_rows * p.tile_columns;
  const int64_t per_tile = kPoints * (p.slots * p.conv.x.size[1] + 2 * p.blocks * p.block);
  const int64_t most = std::min(std::max(kScratchFloats / per_tile, kFewTiles), kManyTiles);
  const int64_t groups =
      std::min(std::max(ceil_div(kFewTiles * threads, tiles), int64_t{1}), std::min(p.blocks, threads));
  const int64_t together = threads / std::gcd(threads, groups);  // bands that keep every thread busy
  const int64_t bands = std::min(ceil_div(ceil_div(tiles, most), together) * together, tiles);
  p.band = ceil_div(tiles, bands);
  std::vector<WinogradItem> items;
  for (int64_t i = 0; i < bands; ++i)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t tile = i * tiles / bands, block = g * p.blocks / groups;
      items.push_back({tile, (i + 1) * tiles / bands - tile, block, (g + 1) * p.blocks / groups - block});
    }
  return items;
}

}  // namespace

PointWindow winograd_points(int64_t zero_row, int64_t zero_column) {
  PointRange range[2];
  const int64_t zero[2] = {zero_row, zero_column};
  for (int d = 0; d < 2; ++d) {
    require(zero[d] == -1 || zero[d] == 0 || zero[d] == 2, "winograd_pack",
            "zero row and column are " + sizes_text(zero, 2) + ", expected -1 for none, 0 or 2");
    // The value at the point 0 is a multiple of the first tap, that at infinity of the last one.
    range[d] = {zero[d] == 0 ? 1 : 0, zero[d] == 2 ? kRead - 1 : kRead};
  }
  return {range[0], range[1]};
}

int64_t winograd_packed_floats(const Tensor5& weight, const PointWindow& points, Isa isa) {
  check_weight(weight);
  const int64_t block = CVK_TABLE_OF(isa, causal_conv3d_winograd).block;
  return point_count(points) * count_slices(weight) * ceil_div(weight.size[0], block) * weight.size[1] *
         block;
}

void winograd_pack(const Tensor5& weight, Dtype dtype, const PointWindow& points, float* packed, Isa isa,
                   int num_threads) {
  check_threads(kOp, num_threads);
  check_tensor(kOp, "weight", weight);
  check_weight(weight);
  const WinogradKernels& kernels = CVK_TABLE_OF(isa, causal_conv3d_winograd);
  WinogradPack p;
  p.weight = weight;
  p.dtype = dtype;
  p.points = points;
  p.slices = count_slices(weight);
  p.block = kernels.block;
  p.blocks = ceil_div(weight.size[0], p.block);
  p.packed = packed;
  constexpr int64_t inputs_at_once = 16;
  const int64_t parts = ceil_div(weight.size[1], inputs_at_once);
  parallel_for(p.blocks * parts, num_threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % parts * inputs_at_once;
      kernels.pack(p, i / parts, first, std::min(inputs_at_once, weight.size[1] - first));
    }
  });
}

void causal_conv3d_winograd(const CausalConv3d& conv, const float* packed, Isa isa, int num_threads) {
  const WinogradPhase only{packed, winograd_points(-1, -1), conv.out};
  causal_conv3d_winograd(conv, &only, 1, Doubling::none, isa, num_threads);
}

void causal_conv3d_winograd(const CausalConv3d& conv, const WinogradPhase* phases, int64_t phase_count,
                            Doubling doubling, Isa isa, int num_threads) {
  check_threads(kOp, num_threads);
  check_causal_conv3d(conv);
  Tensor5 kernel = conv.weight;
  if (doubling != Doubling::none && kernel.size[2] == 2) kernel.size[2] = 1;  // of a slice
  check_weight(kernel);
  for (int64_t i = 0; i < phase_count; ++i)
    require(phases[i].weights != nullptr, kOp, "the packed weights have a null address");
  for (int d = 0; d < 3; ++d)
    require(conv.stride[d] == 1 && conv.dilation[d] == 1, kOp,
            "stride is " + sizes_text(conv.stride, 3) + " and dilation " + sizes_text(conv.dilation, 3) +
                ", expected 1 everywhere for Winograd");
  require(std::max({conv.top, conv.bottom, conv.left, conv.right}) <= 1, kOp,
          "spatial_padding is more than 1 pixel");
  if (element_count(conv.out) == 0) return;

  const WinogradKernels& kernels = CVK_TABLE_OF(isa, causal_conv3d_winograd);
  Winograd p{};
  p.conv = conv;
  p.phases = phases;
  p.phase_count = phase_count;
  p.doubling = doubling;
  p.slices = doubling == Doubling::none ? count_slices(conv.weight) : 3;
  p.frame_by_frame = p.slices == 1;
  const std::vector<WinogradStep> steps = make_steps(p);
  p.steps = steps.data();
  p.step_count = static_cast<int64_t>(steps.size());
  p.tile_rows = ceil_div(conv.out.size[3], kTilePixels);
  p.tile_columns = ceil_div(conv.out.size[4], kTilePixels);
  p.block = kernels.block;
  p.blocks = ceil_div(conv.out.size[1], p.block);
  const std::vector<WinogradItem> items = make_items(p, num_threads);

  int64_t most_blocks = 0;
  for (const WinogradItem& item : items) most_blocks = std::max(most_blocks, item.blocks);
  const int64_t count = static_cast<int64_t>(items.size());
  const int threads = static_cast<int>(std::min<int64_t>(count, num_threads));
  const int64_t per_thread = round_up_to_line(kernels.scratch_floats(p, most_blocks));
  Scratch scratch(per_thread * threads);
  parallel_for(count, threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) kernels.item(p, items[i], scratch.data() + thread * per_thread);
  });
}

}  // namespace cvk
