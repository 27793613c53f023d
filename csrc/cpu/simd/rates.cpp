// What the multipliers of one instruction set can do; compiled once for each (CVK_ISA names its namespace).
#include "../rates.h"

#include "multiply.h"
#include "vec.h"

namespace cvk {
namespace {

constexpr int kAccumulators = 2 * kColumnsPerKernel;

// Independent sums in registers, nothing loaded.
double fused_multiply_adds(int64_t rounds, float* sink) {
  Vec acc[kAccumulators];
  for (int a = 0; a < kAccumulators; ++a) acc[a] = load(sink + a * kLanes);  // equal ones would be one
  const Vec factor = load(sink);
  const float scale = sink[0];
  for (int64_t i = 0; i < rounds; ++i)
    for (int a = 0; a < kAccumulators; ++a) acc[a] = multiply_add(factor, scale, acc[a]);
  for (int a = 0; a < kAccumulators; ++a) store(sink + a * kLanes, acc[a]);
  return 2.0 * kLanes * kAccumulators * static_cast<double>(rounds);
}

// The micro-kernel over rows and weights that stay in the first-level cache.
double micro_kernel(int64_t rounds, float* scratch) {
  for (int64_t i = 0; i < rounds; ++i) {
    Vec acc[kColumnsPerKernel][2] = {};
    multiply(acc, scratch, kRateDepth + 16, scratch + kColumnsPerKernel * (kRateDepth + 16), kRateDepth,
             scratch);
    for (int r = 0; r < kColumnsPerKernel; ++r)
      for (int v = 0; v < 2; ++v) store(scratch + (r * 2 + v) * kLanes, acc[r][v]);
  }
  return 2.0 * kBlock * kColumnsPerKernel * kRateDepth * static_cast<double>(rounds);
}

}  // namespace

namespace CVK_ISA {
extern const Rates rates = {fused_multiply_adds, micro_kernel};
}

}  // namespace cvk
