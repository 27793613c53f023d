// Memory of one call. Never included by an instruction-set unit.
#pragma once

#include <cstdint>
#include <memory>

namespace cvk {

constexpr int64_t kCacheLineFloats = 16;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up_to_line(int64_t floats) {
  return ceil_div(floats, kCacheLineFloats) * kCacheLineFloats;
}

// Uninitialised floats that start on a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : memory_(new float[floats + kCacheLineFloats]) {}
  float* data() const {
    constexpr uintptr_t line = kCacheLineFloats * sizeof(float);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + line - 1) / line * line);
  }

 private:
  std::unique_ptr<float[]> memory_;
};

}  // namespace cvk
