// The rate of the multipliers of this machine, and of the micro-kernel of the convolutions.
#pragma once

#include <cstdint>

namespace cvk {

enum class Isa : int;  // isa.h, which instruction-set units do not include

constexpr int64_t kRateDepth = 128;
constexpr int64_t kRateScratchFloats = 64 * (kRateDepth + 16);

// Both return the floating-point operations of so many rounds.
struct Rates {
  double (*fused_multiply_adds)(int64_t rounds, float* sink);
  double (*micro_kernel)(int64_t rounds, float* scratch);
};

namespace portable {
extern const Rates rates;
}
namespace avx2 {
extern const Rates rates;
}
namespace avx512 {
extern const Rates rates;
}

// GFLOP/s of all threads together, the best of a few measurements of `milliseconds` each.
double fma_rate(Isa isa, int num_threads, double milliseconds);
double micro_kernel_rate(Isa isa, int num_threads, double milliseconds);

}  // namespace cvk
