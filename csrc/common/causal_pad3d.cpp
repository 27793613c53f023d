#include "causal_pad3d.h"

#include <algorithm>
#include <string>

#include "check.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_pad3d";

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

void check_causal_pad3d(const CausalPad3d& p) {
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

}  // namespace cvk
