// Vectors of floats as wide as the instruction set of the including unit.
//
// For instruction-set units only. Everything is in an unnamed namespace and no header of the C++
// library with templates is included: a unit must emit no weak symbol, because the linker keeps one of
// several equal ones for the whole module and could keep the one with instructions that are not there.
#pragma once

#include <cstdint>

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

#endif

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace cvk
