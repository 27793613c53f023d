#include "causal_pad3d.h"

#include <algorithm>
#include <string>

#include "check.h"
#include "copy_block.h"
#include "parallel.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_pad3d";

// Below this many bytes waking threads costs more than the copy.
constexpr int64_t kBytesWorthThreads = 64 * 1024;

bool channels_innermost(const Tensor5& t) { return t.stride[1] == 1 && t.size[1] > 1; }

void check(const CausalPad3d& p, int num_threads) {
  check_threads(kOp, num_threads);
  check_tensor(kOp, "x", p.x);
  check_tensor(kOp, "out", p.out);
  const int64_t* n = p.x.size;
  require(p.itemsize == 1 || p.itemsize == 2 || p.itemsize == 4 || p.itemsize == 8, kOp,
          "itemsize is " + std::to_string(p.itemsize) + ", expected 1, 2, 4 or 8");
  require(p.causal_padding >= 0, kOp,
          "causal_padding is " + std::to_string(p.causal_padding) + ", expected none negative");
  const int64_t halo[4] = {p.top, p.bottom, p.left, p.right};
  require(std::min({p.top, p.bottom, p.left, p.right}) >= 0, kOp,
          "spatial_padding is " + sizes_text(halo, 4) + ", expected none negative");
  check_sizes(kOp, "out", p.out,
              {n[0], n[1], n[2] + p.causal_padding, n[3] + p.top + p.bottom, n[4] + p.left + p.right});
  if (p.state) {
    check_tensor(kOp, "state", *p.state);
    check_sizes(kOp, "state", *p.state, {n[0], n[1], p.causal_padding, n[3], n[4]});
  }
  if (element_count(p.out) == 0) return;
  require(n[3] > 0 && n[4] > 0, kOp,
          "x has sizes " + sizes_text(n, 5) + ", expected a height and a width of at least 1");
  require(n[2] > 0 || p.state || p.temporal_mode != TemporalMode::replicate, kOp,
          "x has no frame to replicate, expected at least 1, or a state");
  check_reflect(kOp, p.spatial_mode, std::max(p.top, p.bottom), n[3], "height");
  check_reflect(kOp, p.spatial_mode, std::max(p.left, p.right), n[4], "width");
}

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

Tensor5 body_of(const Tensor5& storage, int64_t causal_padding, const int64_t (&spatial_padding)[4],
                int itemsize) {
  const int64_t before[5] = {0, 0, causal_padding, spatial_padding[0], spatial_padding[2]};
  const int64_t after[5] = {0, 0, 0, spatial_padding[1], spatial_padding[3]};
  Tensor5 body = storage;
  int64_t offset = 0;
  for (int d = 0; d < 5; ++d) {
    body.size[d] -= before[d] + after[d];
    offset += before[d] * storage.stride[d];
  }
  require(*std::min_element(body.size, body.size + 5) >= 0, kOp,
          "storage has sizes " + sizes_text(storage.size, 5) + ", expected room for " +
              std::to_string(causal_padding) + " past frames and a halo of " +
              sizes_text(spatial_padding, 4));
  if (storage.data) body.data = static_cast<char*>(storage.data) + offset * itemsize;
  return body;
}

void causal_pad3d(const CausalPad3d& pad, int num_threads) {
  check(pad, num_threads);
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
