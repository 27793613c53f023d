#include "pad_plan.h"

#include <algorithm>
#include <string>

#include "../../common/check.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_pad3d";

bool channels_innermost(const Tensor5& t) { return t.stride[1] == 1 && t.size[1] > 1; }

// Stride of a dimension that is walked; one of size 1 never is.
int64_t walked(const Tensor5& t, int d) { return t.size[d] > 1 ? t.stride[d] : 0; }

// Whether `bytes` divide the address and every stride but that of `inner`, whose elements follow each other.
bool takes_words(const Tensor5& t, int inner, int itemsize, int bytes) {
  if (reinterpret_cast<uintptr_t>(t.data) % bytes || (t.size[inner] > 1 && t.stride[inner] != 1))
    return false;
  for (int d = 0; d < 5; ++d)
    if (d != inner && walked(t, d) * itemsize % bytes) return false;
  return t.size[inner] * itemsize % bytes == 0;
}

// Frames whose rows follow each other are one row.
bool merges_rows(const Tensor5& t) {
  return (t.size[3] == 1 || t.stride[3] == t.size[4]) && (t.size[4] == 1 || t.stride[4] == 1);
}

void merge_rows(Tensor5& t) {
  t.size[4] *= t.size[3];
  t.stride[4] = 1;
  t.size[3] = 1;
}

void widen(Tensor5& t, int inner, int factor) {
  for (int d = 0; d < 5; ++d)
    if (d != inner) t.stride[d] = walked(t, d) / factor;
  t.size[inner] /= factor;
}

PadTensor walk_tensor(const Tensor5& t) {
  PadTensor result{static_cast<char*>(t.data), {}};
  std::copy(t.stride, t.stride + 5, result.stride);
  return result;
}

PadRegion region(bool halo_only, int64_t pixels, int64_t channels, bool channels_inner) {
  const int64_t items = pixels * channels;
  require(items < kFastDivideLimit - kPadItemsPerBlock, kOp,
          "a padded frame has " + std::to_string(items) + " items, the kernel takes fewer than 2^31");
  const int64_t chunks = (items + kPadItemsPerBlock - 1) / kPadItemsPerBlock;
  return {halo_only, static_cast<uint32_t>(items), static_cast<uint32_t>(chunks), fast_divide(chunks),
          fast_divide(channels_inner ? channels : pixels)};
}

uint32_t count_blocks(int64_t blocks) {
  require(blocks < kFastDivideLimit, kOp,
          "the padding takes " + std::to_string(blocks) + " blocks, a launch has fewer than 2^31");
  return static_cast<uint32_t>(blocks);
}

}  // namespace

PadPlan plan_pad(const CausalPad3d& pad) {
  check_causal_pad3d(pad);
  PadPlan plan{};
  if (element_count(pad.out) == 0) return plan;
  Tensor5 out = pad.out, x = pad.x, state = pad.state ? *pad.state : Tensor5{};
  const bool to_channels = channels_innermost(out), from_channels = channels_innermost(x);
  plan.transposes = !pad.body_is_in_out && to_channels != from_channels && out.size[1] > 1 &&
                    out.size[4] > 1 && (to_channels ? x.stride[4] == 1 : out.stride[4] == 1);
  plan.item_bytes = pad.itemsize;

  const bool has_body = x.size[2] > 0;
  const bool no_halo = pad.top + pad.bottom + pad.left + pad.right == 0;
  auto all = [&](auto&& holds) {
    return holds(out) && (!has_body || holds(x)) && (!pad.state || holds(state));
  };
  if (!plan.transposes) {
    const bool merges = !to_channels && no_halo && all(merges_rows);
    if (merges) {
      merge_rows(out);
      merge_rows(x);
      if (pad.state) merge_rows(state);
    }
    // Along the width a halo shifts the frames against each other, by any number of elements.
    const int inner = to_channels ? 1 : 4;
    for (int bytes = 16; (to_channels || merges) && bytes > pad.itemsize; bytes /= 2) {
      if (!all([&](const Tensor5& t) { return takes_words(t, inner, pad.itemsize, bytes); })) continue;
      plan.item_bytes = bytes;
      for (Tensor5* t : {&out, &x, &state}) widen(*t, inner, bytes / pad.itemsize);
      break;
    }
  }

  PadWalk& walk = plan.walk;
  walk.out = walk_tensor(out);
  walk.x = walk_tensor(x);
  walk.state = walk_tensor(state);
  walk.has_state = pad.state != nullptr;
  walk.channels_inner = to_channels;
  const int64_t batch = out.size[0], channels = out.size[1], out_height = out.size[3],
                out_width = out.size[4];
  const int64_t frames = x.size[2], height = x.size[3], width = x.size[4];
  const int64_t pixels = out_height * out_width;
  require(std::max({pad.causal_padding, channels, out_height, out_width}) < kFastDivideLimit, kOp,
          "out has sizes " + sizes_text(pad.out.size, 5) + ", the kernel takes fewer than 2^31 of each");
  walk.past = static_cast<int>(pad.causal_padding);
  walk.top = static_cast<int>(pad.top);
  walk.left = static_cast<int>(pad.left);
  walk.height = static_cast<int>(height);
  walk.width = static_cast<int>(width);
  walk.out_height = static_cast<int>(out_height);
  walk.out_width = static_cast<int>(out_width);
  walk.channels = static_cast<int>(channels);
  walk.halo_rows = static_cast<uint32_t>(pad.top + pad.bottom);
  walk.by_out_width = fast_divide(out_width);
  walk.by_sides = fast_divide(pad.left + pad.right);
  walk.temporal_mode = pad.temporal_mode;
  walk.spatial_mode = pad.spatial_mode;
  walk.head = region(false, pixels, channels, to_channels);
  const bool halo_only = pad.body_is_in_out;
  walk.body = region(halo_only, halo_only ? pixels - height * width : pixels, channels, to_channels);
  const int64_t head_chunks = pad.causal_padding * walk.head.chunks;
  const int64_t per_batch = head_chunks + frames * walk.body.chunks;
  walk.blocks = count_blocks(batch * per_batch);
  walk.head_chunks = static_cast<uint32_t>(head_chunks);
  walk.by_batch = fast_divide(per_batch);

  if (plan.transposes) {
    const int64_t side = plan.item_bytes < 8 ? PadTile<uint8_t>::kSide : PadTile<uint64_t>::kSide;
    const int64_t along = (out_width + side - 1) / side, across = (channels + side - 1) / side;
    const int64_t out_frames = out.size[2];
    plan.tiles = {count_blocks(batch * out_frames * out_height * along * across), fast_divide(along * across),
                  fast_divide(along), fast_divide(out_height), fast_divide(out_frames)};
  }
  return plan;
}

}  // namespace cvk
