// SiLU of a vector. For instruction-set units only (see vec.h).
#pragma once

#include "vec.h"

#if !defined(__GNUC__)
#include <math.h>
#endif

namespace cvk {
namespace {

#if defined(__GNUC__)

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

// 2^k for k in [-126, 127].
inline Vec power_of_two(IntVec k) { return reinterpret_cast<Vec>((k + 127) << 23); }

// e^t where that is a normal number; infinity above, 0 or nearly 0 below; a NaN stays one. t = k ln 2 + r
// with |r| <= ln 2 / 2; e^r by a polynomial (Moshier's Cephes, expf), 2^k in two factors, so that k may go
// beyond the exponents of a float. Always inline: a call would load the twelve constants for every vector.
CVK_ALWAYS_INLINE Vec exponential(Vec t) {
  t = t < -104.0f ? splat(-104.0f) : t;
  t = t > 104.0f ? splat(104.0f) : t;
  const Vec magic = splat(0x1.8p23f);  // added, it leaves the nearest integer in the lowest bits
  const Vec shifted = multiply_add(t, 1.44269504088896341f, magic);
  const Vec whole = shifted - magic;
  const IntVec k = reinterpret_cast<IntVec>(shifted) - reinterpret_cast<IntVec>(magic);
  Vec r = multiply_add(whole, -0.693359375f, t);
  r = multiply_add(whole, 2.12194440e-4f, r);
  Vec p = multiply_add(r, 1.9875691500e-4f, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p, r * r, r) + 1.0f;
  const IntVec half = k >> 1;
  return p * power_of_two(half) * power_of_two(k - half);
}

// To 2.3 ulp, as the framework's (measured on each instruction set for |y| < 87).
CVK_ALWAYS_INLINE Vec silu(Vec y) { return y / (1.0f + exponential(-y)); }

#else

inline Vec silu(Vec y) {
  for (int i = 0; i < kLanes; ++i) y.lane[i] /= 1.0f + expf(-y.lane[i]);
  return y;
}

#endif

}  // namespace
}  // namespace cvk
