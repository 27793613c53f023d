// What every thread of the CUDA group norm does: pieces of statistics, their merge, the pass that writes.
//
// A thread counts from the first value that it sees of a channel and runs Welford's recurrence; threads are
// merged by Chan's formula, and a mean is kept as a number and the rest that rounding leaves. So what is
// rounded off is a part of the spread and not of the mean, and a value far from all others costs the digits
// of the few that are merged with it first.
#pragma once

#include "norm_walk.h"

namespace cvk {

// ---------------------------------------------------------------- which elements are whose

// How the blocks of a launch share channels and pixels. Threads are `lanes` (of `by_lanes`) by `rows`.
// Across: a lane has an item's channels, a row a pixel of every `rows`. Along: a row has a channel, a lane an
// item of every `lanes`.
struct NormGrid {
  uint32_t channels, pixels;
  uint32_t items;  // pixels, or groups of them
  uint32_t chunk;  // items of a block
  uint32_t blocks, rows;
  FastDivide by_lanes;
  FastDivide by_chunks, by_tiles;  // chunks of a tile of channels; tiles of a batch entry
};

struct NormPlace {
  int64_t b;
  uint32_t chunk, channel;
  uint32_t first, end, step;  // items; none for a thread that has nothing to do
};

template <class Kind>
CVK_HD static inline NormPlace norm_place(const NormGrid& grid, uint32_t block, uint32_t thread) {
  const uint32_t tile = grid.by_chunks(block), b = grid.by_tiles(tile);
  const uint32_t row = grid.by_lanes(thread), lane = thread - row * grid.by_lanes.divisor;
  NormPlace at;
  at.b = b;
  at.chunk = block - tile * grid.by_chunks.divisor;
  const uint32_t tile_of_entry = tile - b * grid.by_tiles.divisor;
  at.channel = Kind::kAcross ? (tile_of_entry * grid.by_lanes.divisor + lane) * Kind::kItem
                             : tile_of_entry * grid.rows + row;
  at.step = Kind::kAcross ? grid.rows : grid.by_lanes.divisor;
  at.first = at.chunk * grid.chunk + (Kind::kAcross ? row : lane);
  at.end = (at.chunk + 1) * grid.chunk;
  if (at.end > grid.items) at.end = grid.items;
  if (row >= grid.rows || at.channel >= grid.channels) at.end = at.first;
  return at;
}

// ---------------------------------------------------------------- statistics

// Items of x that a thread has under way at once: four words, or the elements of one item.
template <class Kind>
static constexpr uint32_t kStatisticsUnroll = Kind::kWords ? 4 : 1;

struct GroupNormStatistics {
  NormTensor x;
  NormAxes axes;
  NormGrid grid;
  float* partial;  // (B, chunks, 3, C): Moments
};

// The sum of two numbers, and what rounding takes from it (Knuth's TwoSum).
CVK_HD static inline void two_sum(float a, float b, float& sum, float& rest) {
  sum = a + b;
  const float part = sum - a;
  rest = (a - (sum - part)) + (b - part);
}

// Of some values: their mean, what rounding takes from it, the sum of squared differences from both.
struct Moments {
  float mean, rest, squares;
};

// `share` is what the values of `b` are of all, `count` those of `a`. The rest is kept small, so that what a
// merge rounds off weighs as much less as the values that it is of.
CVK_HD static inline Moments merged(float count, const Moments& a, float share, const Moments& b) {
  const float apart = (b.mean - a.mean) + (b.rest - a.rest);
  Moments both;
  two_sum(a.mean, a.rest + apart * share, both.mean, both.rest);
  both.squares = a.squares + b.squares + apart * apart * (count * share);
  return both;
}

// Where the threads of a block leave their moments for others to merge.
template <class Kind>
struct MomentsTable {
  float count[kNormThreads];
  Moments moments[Kind::kChannels][kNormThreads];
};

// A thread's own moments, into the table.
template <class Kind>
CVK_HD static inline void statistics_sum(const GroupNormStatistics& walk, uint32_t block, uint32_t thread,
                                         MomentsTable<Kind>& table) {
  constexpr int kItem = Kind::kItem;
  const NormGrid& grid = walk.grid;
  const NormPlace at = norm_place<Kind>(grid, block, thread);
  const typename Kind::Element* base = norm_base<Kind>(walk.x, at.b, at.channel);
  float pivot[Kind::kChannels] = {}, mean[kItem] = {}, squares[kItem] = {};
  if (at.first < at.end) {
    const int size = item_size<Kind>(at.first, at.channel, grid.channels, grid.pixels);
    const NormItem item = norm_load<Kind>(walk.x, walk.axes, base, at.first, size);
    CVK_UNROLL
    for (int c = 0; c < Kind::kChannels; ++c) pivot[c] = element<Kind>(item, c);
  }
  float number = 0;
  constexpr uint32_t kUnroll = kStatisticsUnroll<Kind>;
  for (uint32_t start = at.first; start < at.end; start += kUnroll * at.step) {
    NormItem items[kUnroll];
    CVK_UNROLL
    for (uint32_t u = 0; u < kUnroll; ++u) {
      const uint32_t item = start + u * at.step;
      if (item >= at.end) continue;
      const int size = item_size<Kind>(item, at.channel, grid.channels, grid.pixels);
      items[u] = norm_load<Kind>(walk.x, walk.axes, base, item, size);
    }
    CVK_UNROLL
    for (uint32_t u = 0; u < kUnroll; ++u) {
      const uint32_t item = start + u * at.step;
      if (item >= at.end) break;
      number += 1;
      const float share = share_of(1, number);
      const int size = item_size<Kind>(item, at.channel, grid.channels, grid.pixels);
      CVK_UNROLL
      for (int i = 0; i < kItem; ++i) {
        const float x = element<Kind>(items[u], i) - pivot[Kind::kAcross ? i : 0];
        float apart = x - mean[i];
        if (!Kind::kAcross && i >= size) apart = 0;
        mean[i] += apart * share;
        squares[i] += apart * (x - mean[i]);
      }
    }
  }
  // Of pixels the last item may have fewer, and then some lanes of it one value less.
  const bool has_last = !Kind::kAcross && at.first < at.end && (grid.items - 1 - at.first) % at.step == 0 &&
                        at.end == grid.items;
  const int size = item_size<Kind>(grid.items - 1, at.channel, grid.channels, grid.pixels);
  float count = number;
  CVK_UNROLL
  for (int i = 0; i < kItem; ++i) {
    const Moments own{mean[i], 0, squares[i]};
    Moments& there = table.moments[Kind::kAcross ? i : 0][thread];
    if (Kind::kAcross || i == 0) {
      there = own;
      continue;
    }
    const float other = has_last && i >= size ? number - 1 : number;
    there = merged(count, there, share_of(other, count + other), own);
    count += other;
  }
  table.count[thread] = count;
  CVK_UNROLL
  for (int c = 0; c < Kind::kChannels; ++c) {
    Moments& there = table.moments[c][thread];
    const float counted = there.mean, rest = there.rest;
    two_sum(pivot[c], counted, there.mean, there.rest);
    there.rest += rest;
  }
}

// How far apart are the threads of the first step that merges: half of the least power of two not below.
CVK_HD static inline uint32_t first_fold(uint32_t count) {
  uint32_t half = 1;
  while (2 * half < count) half *= 2;
  return half;
}

// The number of threads of a block that share channels.
template <class Kind>
CVK_HD static inline uint32_t statistics_sharers(const NormGrid& grid) {
  return Kind::kAcross ? grid.rows : grid.by_lanes.divisor;
}

// Merges the moments of the thread that is `half` rows (or lanes) on.
template <class Kind>
CVK_HD static inline void statistics_fold(const GroupNormStatistics& walk, uint32_t half, uint32_t thread,
                                          MomentsTable<Kind>& table) {
  const uint32_t lanes = walk.grid.by_lanes.divisor;
  const uint32_t row = walk.grid.by_lanes(thread), lane = thread - row * lanes;
  const uint32_t own = Kind::kAcross ? row : lane;
  if (own >= half || own + half >= statistics_sharers<Kind>(walk.grid)) return;
  const uint32_t other = thread + half * (Kind::kAcross ? lanes : 1);
  const float count = table.count[thread], added = table.count[other];
  const float share = share_of(added, count + added);
  CVK_UNROLL
  for (int c = 0; c < Kind::kChannels; ++c) {
    Moments& moments = table.moments[c][thread];
    moments = merged(count, moments, share, table.moments[c][other]);
  }
  table.count[thread] = count + added;
}

// The first of those that share channels writes what all of them have.
template <class Kind>
CVK_HD static inline void statistics_write(const GroupNormStatistics& walk, uint32_t block, uint32_t thread,
                                           const MomentsTable<Kind>& table) {
  const NormGrid& grid = walk.grid;
  const NormPlace at = norm_place<Kind>(grid, block, thread);
  const uint32_t row = grid.by_lanes(thread), lane = thread - row * grid.by_lanes.divisor;
  if ((Kind::kAcross ? row : lane) > 0 || row >= grid.rows) return;
  float* out = walk.partial + (at.b * grid.by_chunks.divisor + at.chunk) * 3 * grid.channels + at.channel;
  CVK_UNROLL
  for (int c = 0; c < Kind::kChannels; ++c) {
    if (at.channel + c >= grid.channels) continue;
    const Moments& moments = table.moments[c][thread];
    out[c] = moments.mean;
    out[grid.channels + c] = moments.rest;
    out[2 * int64_t{grid.channels} + c] = moments.squares;
  }
}

// ---------------------------------------------------------------- merge

struct GroupNormMerge {
  const float* partial;  // (B, pieces, 3, C): Moments
  float* coefficients;   // (B, 3, C): mean, factor, offset
  const void *weight, *bias;
  Dtype parameters;
  uint32_t channels, pieces;
  uint32_t pixels, piece;  // pixels of a piece, but for the last
  FastDivide by_groups, by_width;
  float elements, eps;
};

struct MergeEntry {
  float count;  // of values
  float mean;   // counted from the group's pivot
  float squares;
};

// A group's pivot: the mean of its first piece and channel.
CVK_HD static inline const float* merge_base(const GroupNormMerge& walk, uint32_t block) {
  const uint32_t b = walk.by_groups(block), group = block - b * walk.by_groups.divisor;
  return walk.partial + int64_t{b} * walk.pieces * 3 * walk.channels + group * walk.by_width.divisor;
}

CVK_HD static inline MergeEntry merge_entry(const GroupNormMerge& walk, const float* base, uint32_t entry) {
  const uint32_t piece = walk.by_width(entry), channel = entry - piece * walk.by_width.divisor;
  const float* at = base + int64_t{piece} * 3 * walk.channels + channel;
  const uint32_t left = walk.pixels - piece * walk.piece;
  const uint32_t count = left < walk.piece ? left : walk.piece;
  return {static_cast<float>(count), (at[0] - base[0]) + at[walk.channels], at[2 * int64_t{walk.channels}]};
}

// A thread's part of the sum of a group's values, counted from the pivot.
CVK_HD static inline float merge_sum(const GroupNormMerge& walk, uint32_t block, uint32_t thread) {
  const float* base = merge_base(walk, block);
  const uint32_t entries = walk.pieces * walk.by_width.divisor;
  float sum = 0;
  for (uint32_t entry = thread; entry < entries; entry += kNormThreads) {
    const MergeEntry part = merge_entry(walk, base, entry);
    sum += part.count * part.mean;
  }
  return sum;
}

// With the mean counted from the pivot: a thread's part of what is left of the sum, and of the squared
// differences.
CVK_HD static inline void merge_spread(const GroupNormMerge& walk, uint32_t block, uint32_t thread,
                                       float mean, float& sum, float& squares) {
  const float* base = merge_base(walk, block);
  const uint32_t entries = walk.pieces * walk.by_width.divisor;
  sum = squares = 0;
  for (uint32_t entry = thread; entry < entries; entry += kNormThreads) {
    const MergeEntry part = merge_entry(walk, base, entry);
    const float apart = part.mean - mean;
    sum += part.count * apart;
    squares += part.squares + part.count * apart * apart;
  }
}

CVK_HD static inline float parameter_of(const void* parameters, Dtype dtype, uint32_t channel) {
  if (dtype == Dtype::float32) return static_cast<const float*>(parameters)[channel];
  const uint16_t bits = static_cast<const uint16_t*>(parameters)[channel];
  return dtype == Dtype::bfloat16 ? widen<Dtype::bfloat16>(bits) : widen<Dtype::float16>(bits);
}

// A thread's part of the channels of a group: y = (x - mean) * factor + offset. What rounding takes from the
// mean goes into the offset.
CVK_HD static inline void merge_write(const GroupNormMerge& walk, uint32_t block, uint32_t thread, float mean,
                                      float sum, float squares) {
  const uint32_t b = walk.by_groups(block), width = walk.by_width.divisor;
  const uint32_t first = (block - b * walk.by_groups.divisor) * width;
  float whole, rest;
  two_sum(merge_base(walk, block)[0], mean, whole, rest);
  rest += sum / walk.elements;
  const float inverse = 1.0f / sqrtf(squares / walk.elements + walk.eps);
  float* out = walk.coefficients + int64_t{b} * 3 * walk.channels;
  for (uint32_t c = first + thread; c < first + width; c += kNormThreads) {
    const float factor = walk.weight ? inverse * parameter_of(walk.weight, walk.parameters, c) : inverse;
    const float offset = walk.bias ? parameter_of(walk.bias, walk.parameters, c) : 0;
    out[c] = whole;
    out[walk.channels + c] = factor;
    out[2 * int64_t{walk.channels} + c] = offset - rest * factor;
  }
}

// One step of a sum over a block: adds the value of the thread that is `half` on.
CVK_HD static inline void sum_fold(float* values, uint32_t half, uint32_t thread) {
  if (thread < half) values[thread] += values[thread + half];
}

// ---------------------------------------------------------------- the pass that writes

struct GroupNormWrite {
  NormTensor x, out, scale, shift;  // axes of scale and shift: columns, rows, frames
  NormAxes axes;
  NormGrid grid;
  const float* coefficients;
  bool silu;
  int lone;       // 1: frame 0 of x takes frame 0 of scale and shift, and nothing else does
  int repeat[3];  // columns, rows, frames of x to one of scale and shift, as powers of two
};

// A pixel of scale and shift.
CVK_HD static inline NormPixel latent_pixel(const GroupNormWrite& walk, const NormPixel& pixel) {
  const int frame = static_cast<int>(pixel.at[2]) - walk.lone;
  return {{pixel.at[0] >> walk.repeat[0], pixel.at[1] >> walk.repeat[1],
           static_cast<uint32_t>((frame >> walk.repeat[2]) + walk.lone)}};
}

// The elements of scale or shift that an item of x takes; pixels that share one read it again, from a cache.
template <class Kind>
CVK_HD static inline NormItem latent_load(const GroupNormWrite& walk, const NormTensor& t,
                                          const typename Kind::Element* base, uint32_t item, int size) {
  if constexpr (Kind::kAcross && Kind::kWords) {
    const NormPixel pixel = latent_pixel(walk, norm_pixel(walk.axes, item));
    return *reinterpret_cast<const NormItem*>(base + norm_offset(t, pixel));
  } else {
    NormItem result{};
    CVK_UNROLL
    for (int i = 0; i < Kind::kItem; ++i) {
      if (i >= size) continue;
      const NormPixel pixel = latent_pixel(walk, norm_pixel(walk.axes, pixel_of<Kind>(item, i)));
      const uint32_t bits = base[norm_offset(t, pixel) + (Kind::kAcross ? i * t.channel : 0)];
      if constexpr (Kind::kItem == 4)
        result.word[i] = bits;
      else
        result.word[i / 2] |= bits << 16 * (i % 2);
    }
    return result;
  }
}

// `count` numbers in float32; as words, 16 bytes at a time.
template <int kCount, bool kWords>
CVK_HD static inline void load_floats(const float* from, uint32_t left, float (&to)[kCount]) {
  if constexpr (kWords && kCount % 4 == 0) {
    CVK_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      const NormItem item = *reinterpret_cast<const NormItem*>(from + i);
      CVK_UNROLL
      for (int j = 0; j < 4; ++j) to[i + j] = float_of(item.word[j]);
    }
  } else {
    CVK_UNROLL
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<uint32_t>(i) < left ? from[i] : 0;
  }
}

// Everything one thread writes; returns how many elements.
template <class Kind, bool kSpatial>
CVK_HD static inline int write_items(const GroupNormWrite& walk, uint32_t block, uint32_t thread) {
  constexpr int kItem = Kind::kItem, kChannels = Kind::kChannels;
  constexpr uint32_t kUnroll = !Kind::kWords ? 1 : kSpatial ? 2 : 4;  // items of x under way at once
  const NormGrid& grid = walk.grid;
  // Backwards: the end of x was read last, and may still be in a cache.
  const NormPlace at = norm_place<Kind>(grid, grid.blocks - 1 - block, thread);
  if (at.first >= at.end) return 0;
  const typename Kind::Element* x = norm_base<Kind>(walk.x, at.b, at.channel);
  const typename Kind::Element* scale = norm_base<Kind>(walk.scale, at.b, at.channel);
  const typename Kind::Element* shift = norm_base<Kind>(walk.shift, at.b, at.channel);
  typename Kind::Element* out = norm_base<Kind>(walk.out, at.b, at.channel);
  const float* coefficients = walk.coefficients + at.b * 3 * grid.channels + at.channel;
  const uint32_t left = grid.channels - at.channel;
  float mean[kChannels], factor[kChannels], offset[kChannels];
  load_floats<kChannels, Kind::kWords>(coefficients, left, mean);
  load_floats<kChannels, Kind::kWords>(coefficients + grid.channels, left, factor);
  load_floats<kChannels, Kind::kWords>(coefficients + 2 * int64_t{grid.channels}, left, offset);
  int written = 0;
  for (uint32_t start = at.first; start < at.end; start += kUnroll * at.step) {
    NormItem items[kUnroll], scales[kUnroll], shifts[kUnroll];
    CVK_UNROLL
    for (uint32_t u = 0; u < kUnroll; ++u) {
      const uint32_t item = start + u * at.step;
      if (item >= at.end) continue;
      const int size = item_size<Kind>(item, at.channel, grid.channels, grid.pixels);
      items[u] = norm_load<Kind>(walk.x, walk.axes, x, item, size);
      if constexpr (kSpatial) {
        scales[u] = latent_load<Kind>(walk, walk.scale, scale, item, size);
        shifts[u] = latent_load<Kind>(walk, walk.shift, shift, item, size);
      }
    }
    CVK_UNROLL
    for (uint32_t u = 0; u < kUnroll; ++u) {
      const uint32_t item = start + u * at.step;
      if (item >= at.end) break;
      float y[kItem];
      CVK_UNROLL
      for (int i = 0; i < kItem; ++i) {
        const int c = Kind::kAcross ? i : 0;
        y[i] = (element<Kind>(items[u], i) - mean[c]) * factor[c] + offset[c];
        if constexpr (kSpatial) y[i] = y[i] * element<Kind>(scales[u], i) + element<Kind>(shifts[u], i);
      }
      if (walk.silu) {
        CVK_UNROLL
        for (int i = 0; i < kItem; ++i) y[i] = silu_of<Kind::kDtype>(y[i]);
      }
      const int size = item_size<Kind>(item, at.channel, grid.channels, grid.pixels);
      norm_store<Kind>(walk.out, walk.axes, out, item, size, item_of<Kind>(y));
      written += size;
    }
  }
  return written;
}

}  // namespace cvk
