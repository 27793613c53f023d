#include "causal_conv3d.h"

#include <algorithm>
#include <string>

#include "../common/check.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_conv3d";

void check_steps(const char* name, const int64_t (&steps)[3]) {
  require(*std::min_element(steps, steps + 3) >= 1, kOp,
          std::string(name) + " is " + sizes_text(steps, 3) + ", expected at least 1 everywhere");
}

}  // namespace

void check_causal_conv3d(const CausalConv3d& conv) {
  const int64_t *x = conv.x.size, *w = conv.weight.size;
  check_tensor(kOp, "x", conv.x);
  check_tensor(kOp, "weight", conv.weight);
  check_tensor(kOp, "out", conv.out);
  check_steps("stride", conv.stride);
  check_steps("dilation", conv.dilation);

  const int64_t padding[4] = {conv.top, conv.bottom, conv.left, conv.right};
  require(*std::min_element(padding, padding + 4) >= 0, kOp,
          "spatial_padding is " + sizes_text(padding, 4) + ", expected none negative");
  require(conv.spatial_mode != SpatialMode::valid || *std::max_element(padding, padding + 4) == 0, kOp,
          "spatial_padding is " + sizes_text(padding, 4) + ", expected zeros under spatial mode 'valid'");
  require(std::min({w[2], w[3], w[4]}) >= 1, kOp,
          "weight has sizes " + sizes_text(w, 5) + ", expected at least one tap in every direction");
  require(w[1] == x[1], kOp,
          "weight has sizes " + sizes_text(w, 5) + ", expected " + std::to_string(x[1]) +
              " input channels, as x of sizes " + sizes_text(x, 5) + " has");
  require(std::min({x[3], x[4]}) >= 1, kOp,
          "x has sizes " + sizes_text(x, 5) + ", expected a height and a width of at least 1");
  check_reflect(kOp, conv.spatial_mode, std::max(conv.top, conv.bottom), x[3], "height");
  check_reflect(kOp, conv.spatial_mode, std::max(conv.left, conv.right), x[4], "width");

  const int64_t past = past_frames(conv);
  if (conv.state) {
    require(conv.temporal_mode != TemporalMode::valid, kOp,
            "got a state under temporal_mode 'valid', expected none: nothing is padded in time");
    check_tensor(kOp, "state", *conv.state);
    check_sizes(kOp, "state", *conv.state, {x[0], x[1], past, x[3], x[4]});
  }
  require(x[2] >= 1 || conv.state || conv.temporal_mode != TemporalMode::replicate, kOp,
          "x has no frame to replicate, expected at least 1, or a state");

  const int64_t padded[3] = {x[2] + past, x[3] + conv.top + conv.bottom, x[4] + conv.left + conv.right};
  int64_t size[3];
  for (int d = 0; d < 3; ++d) {
    size[d] = output_size(padded[d], w[2 + d], conv.stride[d], conv.dilation[d]);
    require(size[d] >= 1, kOp,
            "the padded input has " + sizes_text(padded, 3) +
                " frames, rows and columns, expected room for the kernel " + sizes_text(w + 2, 3) +
                " at dilation " + sizes_text(conv.dilation, 3));
  }
  check_sizes(kOp, "out", conv.out, {x[0], w[0], size[0], size[1], size[2]});
  if (conv.residual) {
    check_tensor(kOp, "residual", *conv.residual);
    check_sizes(kOp, "residual", *conv.residual, {x[0], w[0], size[0], size[1], size[2]});
  }
}

}  // namespace cvk
