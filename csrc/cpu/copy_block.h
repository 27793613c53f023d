// Copying and clearing a block of W pixels by C channels between two memory layouts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace cvk {

// One side of a copy: element (w, c) lies at data[w * stride_w + c * stride_c].
template <class Item>
struct Block {
  Item* data;
  int64_t stride_w, stride_c;
};

template <class Item>
void clear_block(Block<Item> dst, int64_t width, int64_t channels) {
  if (dst.stride_c == 1 && (dst.stride_w == channels || width == 1)) {
    std::memset(dst.data, 0, width * channels * sizeof(Item));
  } else if (dst.stride_w == 1) {
    for (int64_t c = 0; c < channels; ++c) std::memset(dst.data + c * dst.stride_c, 0, width * sizeof(Item));
  } else {
    for (int64_t w = 0; w < width; ++w)
      for (int64_t c = 0; c < channels; ++c) dst.data[w * dst.stride_w + c * dst.stride_c] = 0;
  }
}

template <class Item>
void copy_block(Block<Item> dst, Block<const Item> src, int64_t width, int64_t channels) {
  if (dst.stride_c == 1 && src.stride_c == 1) {
    bool one_run = (dst.stride_w == channels && src.stride_w == channels) || width == 1;
    int64_t runs = one_run ? 1 : width, length = one_run ? width * channels : channels;
    for (int64_t w = 0; w < runs; ++w)
      std::memcpy(dst.data + w * dst.stride_w, src.data + w * src.stride_w, length * sizeof(Item));
  } else if (dst.stride_w == 1 && src.stride_w == 1) {
    for (int64_t c = 0; c < channels; ++c)
      std::memcpy(dst.data + c * dst.stride_c, src.data + c * src.stride_c, width * sizeof(Item));
  } else {
    // A tile of a transpose touches 32 cache lines on each side, which stay in the first-level cache.
    constexpr int64_t tile = 32;
    for (int64_t c0 = 0; c0 < channels; c0 += tile)
      for (int64_t w0 = 0; w0 < width; w0 += tile)
        for (int64_t w = w0; w < std::min(w0 + tile, width); ++w)
          for (int64_t c = c0; c < std::min(c0 + tile, channels); ++c)
            dst.data[w * dst.stride_w + c * dst.stride_c] = src.data[w * src.stride_w + c * src.stride_c];
  }
}

}  // namespace cvk
