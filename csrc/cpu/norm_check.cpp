#include "norm_check.h"

#include <algorithm>
#include <string>

#include "../common/check.h"

namespace cvk {

void check_in_and_out(const char* op, const Tensor5& x, const Tensor5& out) {
  const int64_t* n = x.size;
  check_tensor(op, "x", x);
  check_tensor(op, "out", out);
  check_sizes(op, "out", out, {n[0], n[1], n[2], n[3], n[4]});
}

void check_eps(const char* op, double eps) {
  require(eps >= 0, op, "eps is " + std::to_string(eps) + ", expected nothing negative");
}

void check_group_norm(const char* op, const Tensor5& x, const Tensor5& out, int64_t groups, double eps,
                      const Modulation& modulation) {
  const int64_t* n = x.size;
  check_in_and_out(op, x, out);
  require(groups >= 1 && n[1] % groups == 0, op,
          "groups is " + std::to_string(groups) + ", expected a divisor of " + std::to_string(n[1]) +
              " channels");
  check_eps(op, eps);
  const auto& [scale, shift, lone_first, repeat] = modulation;
  require(!scale == !shift, op, "got one of scale and shift, expected both or neither");
  if (!scale) return;
  require(*std::min_element(repeat, repeat + 3) >= 1, op,
          "repeats are " + sizes_text(repeat, 3) + ", expected at least 1 of each");
  for (const Tensor5* latent : {scale, shift}) {
    const int64_t* m = latent->size;
    const char* name = latent == scale ? "scale" : "shift";
    check_tensor(op, name, *latent);
    const int64_t lone = lone_first ? 1 : 0;
    require(m[0] == n[0] && m[1] == n[1] && (m[2] - lone) * repeat[0] == n[2] - lone &&
                m[3] * repeat[1] == n[3] && m[4] * repeat[2] == n[4],
            op,
            std::string(name) + " has sizes " + sizes_text(m, 5) + ", expected those of x, " +
                sizes_text(n, 5) + ", divided by the repeats " + sizes_text(repeat, 3));
  }
}

}  // namespace cvk
