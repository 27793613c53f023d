#include "causal_pad3d.h"

#include "../common/check.h"
#include "copy_block.h"
#include "parallel.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_pad3d";

// Below this many bytes waking threads costs more than the copy.
constexpr int64_t kBytesWorthThreads = 64 * 1024;

bool channels_innermost(const Tensor5& t) { return t.stride[1] == 1 && t.size[1] > 1; }

// Writes channels [c0, c0 + channels) of row `h` of padded frame `t`.
//
// Every element is taken from the body or the state, never from a padded element, so rows may be
// written in any order.
template <class Item>
void pad_row(const CausalPad3d& p, int64_t b, int64_t t, int64_t h, int64_t c0, int64_t channels) {
  const Tensor5& out = p.out;
  const int64_t width = p.x.size[4], step = out.stride[4];
  Item* row = static_cast<Item*>(out.data) + b * out.stride[0] + c0 * out.stride[1] + t * out.stride[2] +
              h * out.stride[3];
  auto at = [&](int64_t w) { return Block<Item>{row + w * step, step, out.stride[1]}; };

  const SourceFrame frame = source_frame(t, p.causal_padding, p.state != nullptr, p.temporal_mode);
  const int64_t source_h = source_pixel(h - p.top, p.x.size[3], p.spatial_mode);
  if (frame.origin == FrameOrigin::zero || source_h < 0) {
    clear_block(at(0), out.size[4], channels);
    return;
  }
  const Tensor5& from = frame.origin == FrameOrigin::state ? *p.state : p.x;
  const Item* source = static_cast<const Item*>(from.data) + b * from.stride[0] + c0 * from.stride[1] +
                       frame.index * from.stride[2] + source_h * from.stride[3];

  auto pad_columns = [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      int64_t source_w = source_pixel(w - p.left, width, p.spatial_mode);
      if (source_w < 0) {
        clear_block(at(w), 1, channels);
      } else {
        copy_block(at(w),
                   Block<const Item>{source + source_w * from.stride[4], from.stride[4], from.stride[1]}, 1,
                   channels);
      }
    }
  };
  const bool already_there = p.body_is_in_out && t >= p.causal_padding && source_h == h - p.top;
  pad_columns(0, p.left);
  if (!already_there)
    copy_block(at(p.left), Block<const Item>{source, from.stride[4], from.stride[1]}, width, channels);
  pad_columns(p.left + width, out.size[4]);
}

template <class Item>
void run(const CausalPad3d& p, int num_threads) {
  const bool no_halo = p.top + p.bottom + p.left + p.right == 0;
  // In place and without a halo, the body frames have nothing to write.
  const int64_t frames = p.body_is_in_out && no_halo ? p.causal_padding : p.out.size[2];
  const int64_t batch = p.out.size[0], channels = p.out.size[1], height = p.out.size[3];
  if (batch * frames * channels * height * p.out.size[4] * p.itemsize < kBytesWorthThreads) num_threads = 1;

  // Go through memory in its own order: rows of all channels where channels are innermost on either
  // side (a transpose needs both), planes of one channel otherwise.
  const bool rows =
      channels_innermost(p.out) || channels_innermost(p.x) || (p.state && channels_innermost(*p.state));
  if (rows) {
    parallel_for(batch * frames * height, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        pad_row<Item>(p, i / height / frames, i / height % frames, i % height, 0, channels);
    });
  } else {
    parallel_for(batch * channels * frames, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t h = 0; h < height; ++h)
          pad_row<Item>(p, i / frames / channels, i % frames, h, i / frames % channels, 1);
    });
  }
}

// Frames whose rows follow each other are one long row: fewer and longer runs of memory.
CausalPad3d merge_rows(CausalPad3d p, Tensor5& state) {
  auto mergeable = [](const Tensor5& t) { return t.stride[3] == t.size[4] * t.stride[4]; };
  if (p.top + p.bottom + p.left + p.right != 0 || channels_innermost(p.out) || channels_innermost(p.x) ||
      !mergeable(p.out) || !mergeable(p.x) || (p.state && !mergeable(*p.state)))
    return p;
  auto merge = [](Tensor5& t) {
    t.size[4] *= t.size[3];
    t.size[3] = 1;
  };
  merge(p.out);
  merge(p.x);
  if (p.state) {
    state = *p.state;
    merge(state);
    p.state = &state;
  }
  return p;
}

}  // namespace

void causal_pad3d(const CausalPad3d& pad, int num_threads) {
  check_threads(kOp, num_threads);
  check_causal_pad3d(pad);
  if (element_count(pad.out) == 0) return;
  Tensor5 merged_state;
  const CausalPad3d p = merge_rows(pad, merged_state);
  switch (p.itemsize) {
    case 1:
      return run<uint8_t>(p, num_threads);
    case 2:
      return run<uint16_t>(p, num_threads);
    case 4:
      return run<uint32_t>(p, num_threads);
    default:
      return run<uint64_t>(p, num_threads);
  }
}

}  // namespace cvk
