// Vectors of elements that may lie apart, and the choice of a type at run time. For instruction-set units
// only (see vec.h).
#pragma once

#include "rows.h"

namespace cvk {
namespace {

// Calls body(first, kLanes) for whole vectors of [0, size), then body(first, rest) for what is left: a count
// that the compiler knows leaves only loads and stores of whole vectors in the loop.
template <class Body>
inline void for_each_vector(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, int64_t{kLanes});
  if (i < size) body(i, size - i);
}

// `count` elements `step` apart, then zeros.
template <class Type>
inline Vec load_strided(const typename Type::Item* src, int64_t step, int64_t count) {
  if (step == 1) return load_some<Type>(src, count);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = Type::to_float(src[i * step]);
  return load(lanes);
}

template <class Type>
inline void store_strided(typename Type::Item* dst, int64_t step, Vec v, int64_t count) {
  if (step == 1) return store_some<Type>(dst, v, count);
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) dst[i * step] = Type::from_float(lanes[i]);
}

// Calls a function of `Type`, the element type that a Dtype names.
#define CVK_FOR_TYPE(dtype, ...) \
  switch (dtype) {               \
    case Dtype::float32: {       \
      using Type = Float32;      \
      return __VA_ARGS__;        \
    }                            \
    case Dtype::bfloat16: {      \
      using Type = Bfloat16;     \
      return __VA_ARGS__;        \
    }                            \
    case Dtype::float16: {       \
      using Type = Float16;      \
      return __VA_ARGS__;        \
    }                            \
  }

}  // namespace
}  // namespace cvk
