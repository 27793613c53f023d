#include "fingerprint.h"

#include <algorithm>
#include <cstring>

#include "../common/check.h"

namespace cvk {

namespace {

constexpr int64_t kSamples = 509;  // prime, so that no regular pattern of the weights hides between samples

}  // namespace

uint64_t fingerprint(const Tensor5& tensor, int itemsize) {
  check_tensor("fingerprint", "tensor", tensor);
  require(itemsize == 2 || itemsize == 4 || itemsize == 8, "fingerprint",
          "itemsize is " + std::to_string(itemsize) + ", expected 2, 4 or 8");
  const int64_t count = element_count(tensor), samples = std::min(count, kSamples);
  uint64_t sum = 0x9e3779b97f4a7c15u;
  for (int64_t i = 0; i < samples; ++i) {
    int64_t index = samples > 1 ? i * (count - 1) / (samples - 1) : 0, offset = 0;
    for (int d = 4; d >= 0; --d) {
      offset += index % tensor.size[d] * tensor.stride[d];
      index /= tensor.size[d];
    }
    uint64_t bits = 0;
    std::memcpy(&bits, static_cast<const char*>(tensor.data) + offset * itemsize, itemsize);
    sum = (sum ^ bits) * 0xff51afd7ed558ccdu;  // odd: a product modulo 2^64 loses nothing
    sum ^= sum >> 32;
  }
  return sum;
}

}  // namespace cvk
