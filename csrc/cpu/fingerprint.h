// A checksum over a sample of a tensor, to notice that its values were replaced behind everyone's back.
#pragma once

#include "../common/tensor.h"

namespace cvk {

// Over at most a few hundred elements, evenly spread, taken as bits of 2 or 4 bytes. Needs no alignment of
// values: equal bits give equal checksums, and a changed sample gives another one but for a chance of 2^-64.
uint64_t fingerprint(const Tensor5& tensor, int itemsize);

}  // namespace cvk
