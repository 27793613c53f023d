#include "rates.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "../common/check.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"

namespace cvk {

namespace {

constexpr int kMeasurements = 5;

double best_rate(double (*work)(int64_t, float*), int num_threads, double milliseconds) {
  check_threads("rate", num_threads);
  using Clock = std::chrono::steady_clock;
  Scratch scratch(num_threads * kRateScratchFloats);
  std::fill_n(scratch.data(), num_threads * kRateScratchFloats, 0.0f);
  double best = 0;
  for (int i = 0; i < kMeasurements; ++i) {
    std::vector<double> rates(num_threads, 0.0);
    parallel_for(num_threads, num_threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t thread = begin; thread < end; ++thread) {
        const Clock::time_point start = Clock::now();
        double operations = 0, seconds = 0;
        do {
          operations += work(1000, scratch.data() + thread * kRateScratchFloats);
          seconds = std::chrono::duration<double>(Clock::now() - start).count();
        } while (seconds * 1e3 < milliseconds);
        rates[thread] = operations / seconds * 1e-9;
      }
    });
    double sum = 0;
    for (double rate : rates) sum += rate;
    best = std::max(best, sum);
  }
  return best;
}

}  // namespace

double fma_rate(Isa isa, int num_threads, double milliseconds) {
  return best_rate(CVK_TABLE_OF(isa, rates).fused_multiply_adds, num_threads, milliseconds);
}

double micro_kernel_rate(Isa isa, int num_threads, double milliseconds) {
  return best_rate(CVK_TABLE_OF(isa, rates).micro_kernel, num_threads, milliseconds);
}

}  // namespace cvk
