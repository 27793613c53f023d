// Argument checks: every refusal is a std::invalid_argument that says what was given and what is expected.
#pragma once

#include <initializer_list>
#include <string>

#include "index.h"
#include "tensor.h"

namespace cvk {

// Throws `op: message` unless `ok`.
void require(bool ok, const char* op, const std::string& message);

std::string sizes_text(const int64_t* sizes, int count);

// No negative size, and an address wherever there are elements. Strides cannot be checked against an
// allocation.
void check_tensor(const char* op, const char* name, const Tensor5& tensor);

void check_sizes(const char* op, const char* name, const Tensor5& tensor,
                 std::initializer_list<int64_t> expected);

// "reflect" bounces once: the padding before and after must be smaller than the size.
void check_reflect(const char* op, SpatialMode mode, int64_t padding, int64_t size, const char* dimension);

void check_threads(const char* op, int num_threads);

TemporalMode parse_temporal_mode(const char* op, const std::string& name, bool allow_valid);
SpatialMode parse_spatial_mode(const char* op, const std::string& name, bool allow_valid);
Dtype parse_dtype(const char* op, const std::string& name);

inline int64_t element_count(const Tensor5& t) {
  return t.size[0] * t.size[1] * t.size[2] * t.size[3] * t.size[4];
}

}  // namespace cvk
