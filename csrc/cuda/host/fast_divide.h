// Division of 31-bit numbers by a divisor known before the launch: a multiplication and a shift. The GPU has
// no integer division; it takes about 20 instructions for 32 bits and 70 for 64.
#pragma once

#include <cstdint>

#include "../../common/index.h"

namespace cvk {

// The first number that FastDivide cannot divide.
static constexpr int64_t kFastDivideLimit = int64_t{1} << 31;

struct FastDivide {
  uint32_t divisor, multiplier, shift;

  // n / divisor for n < 2^31. With e = 2^shift - divisor, multiplier = floor(2^32 e / divisor) + 1, and so
  // (multiplier + 2^32) n / 2^(32 + shift) exceeds n / divisor by less than 2^-(shift + 1), half of what
  // n / divisor may lack to the next whole number. The sum is below 2 n, and so below 2^32.
  CVK_HD constexpr uint32_t operator()(uint32_t n) const {
    return (static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> 32) + n) >> shift;
  }
};

// `divisor` is 1 to 2^31; 0 is taken as 1, for a region without items, which nobody divides.
static constexpr inline FastDivide fast_divide(int64_t divisor) {
  if (divisor < 1) divisor = 1;
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < divisor) ++shift;
  const uint64_t excess = (uint64_t{1} << shift) - static_cast<uint64_t>(divisor);
  const uint64_t multiplier = (excess << 32) / static_cast<uint64_t>(divisor) + 1;
  return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(multiplier), shift};
}

}  // namespace cvk
