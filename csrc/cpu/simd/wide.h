// Sums in double of vectors of floats. For instruction-set units only (see vec.h).
//
// A float squared is exact in double, and 2^20 of them lose no digit that a float would show: neither a mean
// far from zero nor a long sum costs accuracy. Two conversions more than sums in float; memory is slower.
#pragma once

#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "vec.h"

namespace cvk {
namespace {

constexpr int kHalf = kLanes / 2;

#if defined(__GNUC__)

typedef float HalfVec __attribute__((vector_size(kHalf * sizeof(float))));
typedef double Wide __attribute__((vector_size(kHalf * sizeof(double))));

// The first and the second half of a vector's lanes.
inline void widen(Vec v, Wide& first, Wide& second) {
  HalfVec halves[2];
  std::memcpy(halves, &v, sizeof halves);
#if defined(__AVX512F__)  // GCC 12 makes three instructions of it; of the form without a mask it warns
  first = _mm512_maskz_cvtps_pd(0xff, halves[0]);
  second = _mm512_maskz_cvtps_pd(0xff, halves[1]);
#else
  first = __builtin_convertvector(halves[0], Wide);
  second = __builtin_convertvector(halves[1], Wide);
#endif
}

#else

struct Wide {
  double lane[kHalf];
};
inline Wide operator+(Wide a, Wide b) {
  for (int i = 0; i < kHalf; ++i) a.lane[i] += b.lane[i];
  return a;
}
inline Wide operator*(Wide a, Wide b) {
  for (int i = 0; i < kHalf; ++i) a.lane[i] *= b.lane[i];
  return a;
}
inline void widen(Vec v, Wide& first, Wide& second) {
  for (int i = 0; i < kHalf; ++i) {
    first.lane[i] = v.lane[i];
    second.lane[i] = v.lane[i + kHalf];
  }
}

#endif

// dst[0 .. kHalf) += value
inline void add_to(double* dst, Wide value) {
  Wide sum;
  std::memcpy(&sum, dst, sizeof sum);
  sum = sum + value;
  std::memcpy(dst, &sum, sizeof sum);
}

// The lanes from the first to the last.
inline double sum_of(Wide first, Wide second) {
  double lanes[kLanes], sum = 0;
  std::memcpy(lanes, &first, sizeof first);
  std::memcpy(lanes + kHalf, &second, sizeof second);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Sums and sums of squares, lane by lane.
struct Moments {
  Wide sum[2], square[2];
};

inline void add(Moments& m, Vec v) {
  Wide first, second;
  widen(v, first, second);
  m.sum[0] = m.sum[0] + first;
  m.sum[1] = m.sum[1] + second;
  m.square[0] = m.square[0] + first * first;
  m.square[1] = m.square[1] + second * second;
}

}  // namespace
}  // namespace cvk
