#include "upsample_conv.h"

#include <string>
#include <vector>

#include "../common/check.h"
#include "causal_conv3d_winograd.h"

namespace cvk {

namespace {

constexpr const char* kOp = "upsample_conv";

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Every second element of an axis from `first` on.
Tensor5 every_second(Tensor5 t, int axis, int64_t first, int64_t itemsize) {
  t.data = static_cast<char*>(t.data) + first * t.stride[axis] * itemsize;
  t.size[axis] = (t.size[axis] - first + 1) / 2;
  t.stride[axis] *= 2;
  return t;
}

void check_output(const UpsampleConv& u) {
  const int64_t *x = u.conv.x.size, *w = u.conv.weight.size;
  const int64_t frames = u.time ? 2 * x[2] - (u.first_single ? 1 : 0) : x[2], factor = u.space ? 2 : 1;
  check_tensor(kOp, "out", u.conv.out);
  check_sizes(kOp, "out", u.conv.out, {x[0], w[0], frames, factor * x[3], factor * x[4]});
  require(!u.time || w[2] == 2, kOp, "the folded kernel has " + std::to_string(w[2]) + " frames, expected 2");
  require(!u.conv.residual, kOp, "got a residual, expected none");
}

}  // namespace

void upsample_conv_winograd(const UpsampleConv& u, const float* packed, Isa isa, int num_threads) {
  check_output(u);
  const int64_t itemsize = bytes_of(u.conv.dtype);
  std::vector<WinogradPhase> phases;
  CausalConv3d conv = u.conv;
  for (int64_t t = 0; t < (u.time ? 2 : 1); ++t)
    for (int64_t r = 0; r < (u.space ? 2 : 1); ++r)
      for (int64_t c = 0; c < (u.space ? 2 : 1); ++c) {
        WinogradPhase phase{packed, winograd_points(-1, -1), u.conv.out, 0};
        if (u.space) {
          phase.points = winograd_points(r == 0 ? 2 : 0, c == 0 ? 2 : 0);
          phase.out = every_second(every_second(phase.out, 3, r, itemsize), 4, c, itemsize);
        }
        if (u.time) {
          // Behind a single first frame the first ones of pairs are odd, and it counts as a second one.
          const bool second = t == 1;
          phase.out = every_second(phase.out, 2, second != u.first_single ? 1 : 0, itemsize);
          phase.first_frame = u.first_single && !second ? 1 : 0;
        }
        if (phase.first_frame == 0) conv.out = phase.out;
        phases.push_back(phase);
        packed += winograd_packed_floats(u.conv.weight, phase.points, isa);
      }
  causal_conv3d_winograd(conv, phases.data(), static_cast<int64_t>(phases.size()), isa, num_threads);
}

}  // namespace cvk
