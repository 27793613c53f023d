#include "fingerprint.h"

#include <algorithm>
#include <cstring>

#include "../common/check.h"

namespace cvk {

namespace {

constexpr int64_t kSamples = 509;  // prime, so that no regular pattern of the weights hides between samples

// Whether the elements fill one piece of memory, in whatever order of the dimensions.
bool is_dense(const Tensor5& tensor) {
  int64_t filled = 1;
  for (bool found = true; found;) {
    found = false;
    for (int d = 0; d < 5 && !found; ++d) {
      found = tensor.size[d] > 1 && tensor.stride[d] == filled;
      if (found) filled *= tensor.size[d];
    }
  }
  return filled == element_count(tensor);
}

int64_t offset_of(const Tensor5& tensor, int64_t index) {
  int64_t offset = 0;
  for (int d = 4; d >= 0; --d) {
    offset += index % tensor.size[d] * tensor.stride[d];
    index /= tensor.size[d];
  }
  return offset;
}

template <class Bits>
uint64_t sum_of_samples(const Tensor5& tensor) {
  const int64_t count = element_count(tensor), samples = std::min(count, kSamples);
  const int64_t gaps = std::max<int64_t>(samples - 1, 1), step = (count - 1) / gaps,
                rest = (count - 1) % gaps;
  const bool dense = is_dense(tensor);  // then in the order of memory: finding an element takes ten divisions
  uint64_t sum = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0, index = 0, carry = 0; i < samples; ++i) {
    Bits bits;
    const int64_t offset = dense ? index : offset_of(tensor, index);
    std::memcpy(&bits, static_cast<const char*>(tensor.data) + offset * sizeof(Bits), sizeof(Bits));
    sum = (sum ^ bits) * 0xff51afd7ed558ccdu;  // odd: a product modulo 2^64 loses nothing
    sum ^= sum >> 32;
    index += step;  // i * (count - 1) / gaps
    carry += rest;
    if (carry >= gaps) {
      carry -= gaps;
      ++index;
    }
  }
  return sum;
}

}  // namespace

uint64_t fingerprint(const Tensor5& tensor, int itemsize) {
  check_tensor("fingerprint", "tensor", tensor);
  if (itemsize == 2) return sum_of_samples<uint16_t>(tensor);
  if (itemsize == 4) return sum_of_samples<uint32_t>(tensor);
  require(itemsize == 8, "fingerprint", "itemsize is " + std::to_string(itemsize) + ", expected 2, 4 or 8");
  return sum_of_samples<uint64_t>(tensor);
}

}  // namespace cvk
