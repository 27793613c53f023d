#include "upsample_conv.h"

#include <string>

#include "../common/check.h"

namespace cvk {

namespace {

constexpr const char* kOp = "upsample_conv";

// Every second element of an axis from `first` on.
Tensor5 every_second(Tensor5 t, int axis, int64_t first, int64_t itemsize) {
  t.data = static_cast<char*>(t.data) + first * t.stride[axis] * itemsize;
  t.size[axis] = (t.size[axis] - first + 1) / 2;
  t.stride[axis] *= 2;
  return t;
}

void check_output(const UpsampleConv& u) {
  const int64_t *x = u.conv.x.size, *w = u.conv.weight.size, factor = u.space ? 2 : 1;
  const int64_t frames = u.time == Doubling::none    ? x[2]
                         : u.time == Doubling::pairs ? 2 * x[2]
                                                     : 2 * x[2] - 1;
  check_tensor(kOp, "out", u.conv.out);
  check_sizes(kOp, "out", u.conv.out, {x[0], w[0], frames, factor * x[3], factor * x[4]});
  require(u.time == Doubling::none || w[2] == 2, kOp,
          "the weight has " + std::to_string(w[2]) +
              " frames, expected 2, which is what doubled ones are seen by");
}

}  // namespace

void upsample_conv_winograd(const UpsampleConv& u, const float* packed, Isa isa, int num_threads) {
  check_output(u);
  const int64_t itemsize = u.conv.dtype == Dtype::float32 ? 4 : 2, parities = u.space ? 2 : 1;
  const bool doubled = u.time != Doubling::none;
  Tensor5 kernel = u.conv.weight;
  if (doubled) kernel.size[2] = 1;
  WinogradPhase phases[4];
  int64_t count = 0;
  for (int64_t r = 0; r < parities; ++r)
    for (int64_t c = 0; c < parities; ++c) {
      WinogradPhase& phase = phases[count++];
      phase = {packed, winograd_points(-1, -1), u.conv.out};
      if (u.space) {
        phase.points = winograd_points(r == 0 ? 2 : 0, c == 0 ? 2 : 0);
        phase.out = every_second(every_second(phase.out, 3, r, itemsize), 4, c, itemsize);
      }
      packed += (doubled ? 3 : 1) * winograd_packed_floats(kernel, phase.points, isa);
    }
  CausalConv3d conv = u.conv;
  conv.out = phases[0].out;
  conv.out.size[2] = conv.x.size[2];
  causal_conv3d_winograd(conv, phases, count, u.time, isa, num_threads);
}

}  // namespace cvk
