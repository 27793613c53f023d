// Runs of elements, converted to and from float32. For instruction-set units only (see vec.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "numbers.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace cvk {
namespace {

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
