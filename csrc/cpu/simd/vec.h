// Vectors of floats as wide as the instruction set of the including unit.
//
// For instruction-set units only. Everything is in an unnamed namespace and no header of the C++
// library with templates is included: a unit must emit no weak symbol, because the linker keeps one of
// several equal ones for the whole module and could keep the one with instructions that are not there.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef CVK_ISA  // a build without instruction-set units
#define CVK_ISA portable
#endif

namespace cvk {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kColumnsPerKernel = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kColumnsPerKernel = 6;  // 12 of 16
#else
constexpr int kLanes = 4;
constexpr int kColumnsPerKernel = 4;  // 8 of 16 (SSE2) or 32 (NEON)
#endif

#if defined(__GNUC__)

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec multiply_add(Vec a, float b, Vec sum) { return sum + a * b; }
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return sum + a * b; }

#else

struct Vec {
  float lane[kLanes];
};

inline Vec load(const float* p) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v.lane[i] = p[i];
  return v;
}
inline void store(float* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) p[i] = v.lane[i];
}
inline Vec multiply_add(Vec a, float b, Vec sum) {
  for (int i = 0; i < kLanes; ++i) sum.lane[i] += a.lane[i] * b;
  return sum;
}
inline Vec operator+(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
  return a;
}
inline Vec operator-(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] -= b.lane[i];
  return a;
}
inline Vec operator*(Vec a, float b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] *= b;
  return a;
}
inline Vec operator*(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] *= b.lane[i];
  return a;
}
inline Vec operator/(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) a.lane[i] /= b.lane[i];
  return a;
}
inline Vec multiply_add(Vec a, Vec b, Vec sum) { return sum + a * b; }

#endif

inline Vec splat(float value) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = value;
  return load(lanes);
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define CVK_SHUFFLE
#endif
#if __has_builtin(__builtin_convertvector) && defined(__GNUC__)
#define CVK_CONVERT
#endif
#endif

#ifdef CVK_SHUFFLE

template <int... kIndex>
struct Lanes {};
template <int kCount, int... kIndex>
struct LanesUpTo : LanesUpTo<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct LanesUpTo<0, kIndex...> {
  using Type = Lanes<kIndex...>;
};

// Of each pair of runs of kRun lanes: the first ones of a and b, or the second ones.
template <int kRun, int... kIndex>
inline Vec first_runs(Vec a, Vec b, Lanes<kIndex...>) {
  return __builtin_shufflevector(a, b, (kIndex & kRun ? kLanes + kIndex - kRun : kIndex)...);
}
template <int kRun, int... kIndex>
inline Vec second_runs(Vec a, Vec b, Lanes<kIndex...>) {
  return __builtin_shufflevector(a, b, (kIndex & kRun ? kLanes + kIndex : kIndex + kRun)...);
}

// Runs of kRun columns change sides with runs of kRun rows; then the same in smaller runs.
template <int kRun>
inline void transpose(Vec (&rows)[kLanes]) {
  if constexpr (kRun > 0) {
    typename LanesUpTo<kLanes>::Type lanes;
    for (int i = 0; i < kLanes; ++i) {
      if (i & kRun) continue;
      const Vec a = rows[i], b = rows[i + kRun];
      rows[i] = first_runs<kRun>(a, b, lanes);
      rows[i + kRun] = second_runs<kRun>(a, b, lanes);
    }
    transpose<kRun / 2>(rows);
  }
}
inline void transpose(Vec (&rows)[kLanes]) { transpose<kLanes / 2>(rows); }

#else

inline void transpose(Vec (&rows)[kLanes]) {
  float from[kLanes][kLanes], to[kLanes][kLanes];
  std::memcpy(from, rows, sizeof from);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  std::memcpy(rows, to, sizeof to);
}

#endif

constexpr int64_t kLineFloats = 16;  // of a cache line

// Bring a cache line near, to be read from the second level soon, or to be written. Any address will do.
inline void prefetch(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#endif
}
inline void prefetch_for_writing(float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 1, 3);
#endif
}

// Loops over registers must be unrolled, and a micro-kernel must have all registers to itself, or they become
// memory.
#if defined(__GNUC__)
#define CVK_UNROLL _Pragma("GCC unroll 16")
#define CVK_NOINLINE __attribute__((noinline))
#define CVK_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define CVK_UNROLL
#define CVK_NOINLINE
#define CVK_ALWAYS_INLINE inline
#endif

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace cvk
