#include "gpu_norms.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>

#include "check.h"

namespace cvk {

namespace {

constexpr const char* kGroupNorm = "group_norm";
constexpr const char* kRmsNorm = "rms_norm";
// Blocks of the statistics at which a chunk grows instead: a few for each multiprocessor, few enough pieces
// to merge. A thread has at least the items that it may have under way.
constexpr int64_t kStatisticsBlocks = 2048, kLeastStatisticsSteps = 4;
// The same of the pass that writes; the most is where reading the coefficients no longer counts.
constexpr int64_t kWriteBlocks = 4096, kMostWriteSteps = 16;
constexpr int64_t kAlignment = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t power_of_two(int64_t count) {
  int64_t power = 1;
  while (power < count) power *= 2;
  return power;
}

int64_t item_elements(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

bool is_across(const Tensor5& x) { return x.size[1] > 1 && x.stride[1] == 1; }

int64_t pixels_of(const Tensor5& x) { return x.size[2] * x.size[3] * x.size[4]; }

// Stride of a dimension that is walked; one of size 1 never is.
int64_t walked(const Tensor5& t, int d) { return t.size[d] > 1 ? t.stride[d] : 0; }

struct Axes {
  int64_t size[3];
  NormAxes axes;
};

// The pixel axes of tensors of one shape: columns, rows, frames, or with `merge` one for those that touch in
// all of them.
Axes walk_axes(std::initializer_list<const Tensor5*> tensors, std::initializer_list<NormTensor*> walks,
               bool merge) {
  Axes found{{1, 1, 1}, {}};
  int count = 0;
  for (int d : {4, 3, 2}) {
    const int64_t size = (*tensors.begin())->size[d];
    if (merge && size == 1) continue;
    bool touches = merge && count > 0;
    for (auto [t, w] = std::pair(tensors.begin(), walks.begin()); t != tensors.end(); ++t, ++w)
      touches = touches && walked(**t, d) == found.size[count - 1] * (*w)->axis[count - 1];
    if (touches) {
      found.size[count - 1] *= size;
      continue;
    }
    for (auto [t, w] = std::pair(tensors.begin(), walks.begin()); t != tensors.end(); ++t, ++w)
      (*w)->axis[count] = walked(**t, d);
    found.size[count++] = size;
  }
  found.axes = {found.size[1] * found.size[2] == 1, fast_divide(found.size[0]), fast_divide(found.size[1])};
  return found;
}

NormTensor walk_tensor(const Tensor5& t) {
  return {static_cast<char*>(t.data), walked(t, 0), walked(t, 1), {0, 0, 0}};
}

// Whether every item is a word in memory.
bool takes_words(const NormTensor& t, bool across, int64_t channels, int64_t pixels, int64_t item) {
  auto divides = [item](std::initializer_list<int64_t> numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [item](int64_t n) { return n % item == 0; });
  };
  if (reinterpret_cast<uintptr_t>(t.data) % kAlignment || !divides({t.batch, t.axis[1], t.axis[2]}))
    return false;
  if (across) return t.channel == 1 && divides({channels, t.axis[0]});
  return t.axis[0] == 1 && divides({pixels, t.channel});
}

uint32_t count_blocks(const char* op, int64_t blocks) {
  require(blocks < kFastDivideLimit, op,
          "the norm takes " + std::to_string(blocks) + " blocks, a launch has fewer than 2^31");
  return static_cast<uint32_t>(blocks);
}

void check_pixels(const char* op, const Tensor5& x) {
  require(pixels_of(x) < kFastDivideLimit && x.size[1] < kFastDivideLimit, op,
          "x has sizes " + sizes_text(x.size, 5) +
              ", the kernel takes fewer than 2^31 channels, and pixels of a batch entry");
}

// A chunk has `least` to `most` items for each thread, as many as leave about `blocks` blocks.
NormGrid grid_of(const Tensor5& x, Dtype dtype, int64_t blocks, int64_t least, int64_t most) {
  check_pixels(kGroupNorm, x);
  const int64_t item = item_elements(dtype), channels = x.size[1], pixels = pixels_of(x);
  const bool across = is_across(x);
  int64_t items = pixels, lanes, rows, tiles;
  if (across) {
    const int64_t units = ceil_div(channels, item);
    tiles = ceil_div(units, kNormThreads);
    lanes = ceil_div(units, tiles);
    rows = kNormThreads / lanes;
  } else {
    items = ceil_div(pixels, item);
    lanes = std::min<int64_t>(power_of_two(items), kNormThreads);
    rows = kNormThreads / lanes;
    tiles = ceil_div(channels, rows);
  }
  const int64_t step = across ? rows : lanes, rounds = ceil_div(items, step);
  const int64_t wanted = std::max<int64_t>(blocks / (x.size[0] * tiles), 1);
  const int64_t chunk = step * std::clamp(ceil_div(rounds, wanted), least, most);
  const int64_t chunks = ceil_div(items, chunk);
  NormGrid grid;
  grid.channels = static_cast<uint32_t>(channels);
  grid.pixels = static_cast<uint32_t>(pixels);
  grid.items = static_cast<uint32_t>(items);
  grid.chunk = static_cast<uint32_t>(chunk);
  grid.blocks = count_blocks(kGroupNorm, x.size[0] * tiles * chunks);
  grid.rows = static_cast<uint32_t>(rows);
  grid.by_lanes = fast_divide(lanes);
  grid.by_chunks = fast_divide(chunks);
  grid.by_tiles = fast_divide(tiles);
  return grid;
}

NormGrid statistics_grid(const Tensor5& x, Dtype dtype) {
  return grid_of(x, dtype, kStatisticsBlocks, kLeastStatisticsSteps, kFastDivideLimit);
}

int64_t coefficient_floats(const Tensor5& x) { return x.size[0] * 3 * x.size[1]; }

int log2_of(int64_t power) {
  int log = 0;
  while (power >> log > 1) ++log;
  return log;
}

}  // namespace

int64_t group_norm_workspace(const Tensor5& x, Dtype dtype) {
  if (element_count(x) == 0) return 0;
  const int64_t chunks = statistics_grid(x, dtype).by_chunks.divisor;
  return coefficient_floats(x) * (1 + chunks);
}

GroupNormPlan plan_group_norm(const GpuGroupNorm& norm) {
  const Tensor5 &x = norm.x, &out = norm.out;
  const auto& [scale, shift, lone_first, repeat] = norm.modulation;
  check_group_norm(kGroupNorm, x, out, norm.groups, norm.eps, norm.modulation);
  GroupNormPlan plan{};
  plan.empty = element_count(x) == 0;
  if (plan.empty) return plan;
  const int64_t floats = group_norm_workspace(x, norm.dtype);
  require(norm.workspace && reinterpret_cast<uintptr_t>(norm.workspace) % kAlignment == 0 &&
              norm.workspace_floats >= floats,
          kGroupNorm,
          "the workspace has room for " + std::to_string(norm.workspace_floats) + " numbers, expected " +
              std::to_string(floats) + " at a multiple of 16 bytes");
  const bool across = is_across(x);
  const int64_t item = item_elements(norm.dtype), channels = x.size[1], width = channels / norm.groups;
  float* const coefficients = norm.workspace;
  float* const partial = coefficients + coefficient_floats(x);

  GroupNormStatistics& statistics = plan.statistics;
  statistics.x = walk_tensor(x);
  const Axes of_x = walk_axes({&x}, {&statistics.x}, true);
  statistics.axes = of_x.axes;
  statistics.grid = statistics_grid(x, norm.dtype);
  statistics.partial = partial;
  plan.sums = {norm.dtype, across, takes_words(statistics.x, across, channels, of_x.size[0], item)};

  GroupNormMerge& merge = plan.merge;
  merge.partial = partial;
  merge.coefficients = coefficients;
  merge.weight = norm.weight;
  merge.bias = norm.bias;
  merge.parameters = norm.parameters;
  merge.channels = statistics.grid.channels;
  merge.pieces = statistics.grid.by_chunks.divisor;
  merge.pixels = statistics.grid.pixels;
  // A piece that reaches over the end is cut there, and may be counted in more than 32 bits before.
  merge.piece = static_cast<uint32_t>(
      std::min<int64_t>(int64_t{statistics.grid.chunk} * (across ? 1 : item), merge.pixels));
  merge.by_groups = fast_divide(norm.groups);
  merge.by_width = fast_divide(width);
  merge.elements = static_cast<float>(static_cast<double>(merge.pixels) * width);
  merge.eps = static_cast<float>(norm.eps);
  require(merge.pieces * width < kFastDivideLimit - kNormThreads, kGroupNorm,
          "a group has " + std::to_string(merge.pieces * width) +
              " pieces of statistics, the kernel takes fewer than 2^31");
  plan.groups = count_blocks(kGroupNorm, x.size[0] * norm.groups);

  GroupNormWrite& write = plan.write;
  plan.spatial = scale != nullptr;
  write.x = walk_tensor(x);
  write.out = walk_tensor(out);
  const Axes of_both = walk_axes({&x, &out}, {&write.x, &write.out}, !plan.spatial);
  write.axes = of_both.axes;
  write.grid = grid_of(x, norm.dtype, kWriteBlocks, 1, kMostWriteSteps);
  write.coefficients = coefficients;
  write.silu = norm.silu;
  auto words = [&](const NormTensor& t) { return takes_words(t, across, channels, of_both.size[0], item); };
  plan.writes = {norm.dtype, across, words(write.x) && words(write.out)};
  if (!plan.spatial) return plan;
  write.scale = walk_tensor(*scale);
  write.shift = walk_tensor(*shift);
  walk_axes({scale, shift}, {&write.scale, &write.shift}, false);
  // Of pixels, scale and shift are read one by one.
  if (across) plan.writes.words = plan.writes.words && words(write.scale) && words(write.shift);
  write.lone = lone_first ? 1 : 0;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t times = repeat[2 - axis];
    require(power_of_two(times) == times, kGroupNorm,
            "repeats are " + sizes_text(repeat, 3) + ", expected powers of two");
    write.repeat[axis] = log2_of(times);
  }
  return plan;
}

RmsNormPlan plan_rms_norm(const GpuRmsNorm& norm) {
  const Tensor5 &x = norm.x, &out = norm.out;
  check_in_and_out(kRmsNorm, x, out);
  check_eps(kRmsNorm, norm.eps);
  require(norm.weight != nullptr, kRmsNorm, "weight has a null address, expected one");
  RmsNormPlan plan{};
  plan.empty = element_count(x) == 0;
  if (plan.empty) return plan;
  check_pixels(kRmsNorm, x);
  const bool across = is_across(x);
  const int64_t item = item_elements(norm.dtype), channels = x.size[1], pixels = pixels_of(x);
  RmsNormWalk& walk = plan.walk;
  walk.x = walk_tensor(x);
  walk.out = walk_tensor(out);
  const Axes both = walk_axes({&x, &out}, {&walk.x, &walk.out}, true);
  walk.axes = both.axes;
  auto words = [&](const NormTensor& t) { return takes_words(t, across, channels, both.size[0], item); };
  auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kAlignment == 0; };
  plan.choice = {norm.dtype, across, words(walk.x) && words(walk.out)};
  if (across) plan.choice.words = plan.choice.words && aligned(norm.weight) && aligned(norm.bias);

  const int64_t units = across ? ceil_div(channels, item) : channels;
  int64_t lanes = 32;
  if (across) {
    // As few idle lanes as there can be, and then as few items as a lane can have. Four lanes read 64 bytes
    // next to each other.
    const int64_t fewest = std::min<int64_t>(power_of_two(units), 4);
    int64_t least = 0;
    for (int kept : {1, 2, 3, 4, 8})
      for (int64_t of_warp = fewest; of_warp <= 32; of_warp *= 2)
        if (of_warp * kept >= units && (least == 0 || of_warp * kept < least)) {
          least = of_warp * kept;
          plan.kept = kept;
          lanes = of_warp;
        }
  } else {
    auto kept = [&] { return ceil_div(channels, kNormThreads / lanes); };
    lanes = std::clamp<int64_t>(kNormThreads / power_of_two(ceil_div(channels, 4)), 32, kNormThreads);
    while (kept() > 16 && lanes > 4) lanes /= 2;
    plan.kept = kept() <= 4 ? 4 : kept() <= 8 ? 8 : kept() <= 16 ? 16 : 0;
    if (plan.kept == 0) lanes = 32;
  }
  if (!plan.choice.words) plan.kept = 0;  // the same sums in the same order
  const int64_t takers = across ? kNormThreads / lanes : lanes;
  const int64_t items = across ? pixels : ceil_div(pixels, item);
  const int64_t blocks = ceil_div(items, takers * rms_norm_pixels(across, plan.kept));
  walk.weight = norm.weight;
  walk.bias = norm.bias;
  walk.channels = static_cast<uint32_t>(channels);
  walk.pixels = static_cast<uint32_t>(pixels);
  walk.units = static_cast<uint32_t>(units);
  walk.items = static_cast<uint32_t>(items);
  walk.log_lanes = log2_of(lanes);
  walk.blocks = count_blocks(kRmsNorm, x.size[0] * blocks);
  walk.by_blocks = fast_divide(blocks);
  walk.root = static_cast<float>(std::sqrt(static_cast<double>(channels)));
  walk.added = static_cast<float>(static_cast<double>(channels) * norm.eps);
  walk.silu = norm.silu;
  return plan;
}

}  // namespace cvk
