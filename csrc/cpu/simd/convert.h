// Element types and their conversion to and from float32. For instruction-set units only (see vec.h).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

// `count` elements that lie next to each other.
template <class Type>
inline void load_run(float* dst, const typename Type::Item* src, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dst[i] = Type::to_float(src[i]);
}

template <class Type>
inline void store_run(typename Type::Item* dst, const float* src, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dst[i] = Type::from_float(src[i]);
}

#if defined(__F16C__)

template <>
inline void load_run<Float16>(float* dst, const uint16_t* src, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  for (; i < count; ++i) dst[i] = Float16::to_float(src[i]);
}

template <>
inline void store_run<Float16>(uint16_t* dst, const float* src, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) dst[i] = Float16::from_float(src[i]);
}

#endif

}  // namespace
}  // namespace cvk
