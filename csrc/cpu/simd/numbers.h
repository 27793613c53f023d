// Element types and their conversion to and from float32.
//
// Everything here has internal linkage: instruction-set units include this header (see common/index.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace cvk {
namespace {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Float32 {
  using Item = float;
  static inline float to_float(Item item) { return item; }
  static inline Item from_float(float value) { return value; }
};

struct Bfloat16 {
  using Item = uint16_t;
  static inline float to_float(Item item) { return float_of(static_cast<uint32_t>(item) << 16); }
  // To nearest, ties to even. A NaN is made quiet, so that rounding cannot turn it into an infinity.
  static inline Item from_float(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uint32_t quiet = bits >> 16 | 0x40;
    return static_cast<Item>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
};

struct Float16 {
  using Item = uint16_t;
  // Subnormal numbers go through an integer, so that a processor set to flush them does not.
  static inline float to_float(Item item) {
    uint32_t sign = static_cast<uint32_t>(item & 0x8000) << 16;
    uint32_t magnitude = item & 0x7fff;
    uint32_t normal = (magnitude << 13) + (112u << 23);
    uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
    uint32_t special = magnitude << 13 | 0x7f800000;
    uint32_t bits = magnitude < 0x0400 ? subnormal : magnitude >= 0x7c00 ? special : normal;
    return float_of(sign | bits);
  }
  // To nearest, ties to even.
  static inline Item from_float(float value) {
    uint32_t sign = bits_of(value) >> 16 & 0x8000;
    uint32_t magnitude = bits_of(value) & 0x7fffffff;
    uint32_t normal = (magnitude + 0x0fff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    // The unit in the last place of floats in [0.5, 1) is that of subnormal halves: the addition rounds.
    uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    uint32_t half = magnitude < 0x38800000 ? subnormal : magnitude >= 0x477ff000 ? special : normal;
    return static_cast<Item>(sign | half);
  }
};

}  // namespace
}  // namespace cvk
