// A 5-D tensor as the kernels see it.
#pragma once

#include <cstdint>

namespace cvk {

// Activations are (B, C, T, H, W), weights (Cout, Cin, kT, kH, kW), in this order whatever the memory layout.
struct Tensor5 {
  void* data;
  int64_t size[5];
  int64_t stride[5];  // in elements
};

enum class Dtype : int { float32, bfloat16, float16 };

}  // namespace cvk
