#include "check.h"

#include <algorithm>
#include <stdexcept>

namespace cvk {

void require(bool ok, const char* op, const std::string& message) {
  if (!ok) throw std::invalid_argument(std::string(op) + ": " + message);
}

std::string sizes_text(const int64_t* sizes, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

void check_tensor(const char* op, const char* name, const Tensor5& tensor) {
  require(std::all_of(tensor.size, tensor.size + 5, [](int64_t n) { return n >= 0; }), op,
          std::string(name) + " has sizes " + sizes_text(tensor.size, 5) + ", expected none negative");
  require(tensor.data != nullptr || element_count(tensor) == 0, op,
          std::string(name) + " has a null address, expected one for sizes " + sizes_text(tensor.size, 5));
}

void check_sizes(const char* op, const char* name, const Tensor5& tensor,
                 std::initializer_list<int64_t> expected) {
  require(std::equal(expected.begin(), expected.end(), tensor.size), op,
          std::string(name) + " has sizes " + sizes_text(tensor.size, 5) + ", expected " +
              sizes_text(expected.begin(), 5));
}

void check_reflect(const char* op, SpatialMode mode, int64_t padding, int64_t size, const char* dimension) {
  require(mode != SpatialMode::reflect || padding < size, op,
          "spatial mode 'reflect' got a padding of " + std::to_string(padding) + ", expected less than the " +
              dimension + " " + std::to_string(size));
}

void check_threads(const char* op, int num_threads) {
  // Some OpenMP runtimes end the process when they cannot start a thread.
  require(num_threads >= 1 && num_threads <= 1024, op,
          "num_threads is " + std::to_string(num_threads) + ", expected 1 to 1024");
}

namespace {

[[noreturn]] void bad_choice(const char* op, const char* what, const std::string& got, const char* expected) {
  throw std::invalid_argument(std::string(op) + ": " + what + ": got '" + got + "', expected " + expected);
}

}  // namespace

TemporalMode parse_temporal_mode(const char* op, const std::string& name, bool allow_valid) {
  if (name == "replicate") return TemporalMode::replicate;
  if (name == "zeros") return TemporalMode::zeros;
  if (name == "valid" && allow_valid) return TemporalMode::valid;
  bad_choice(op, "temporal_mode", name, allow_valid ? "replicate, zeros or valid" : "replicate or zeros");
}

SpatialMode parse_spatial_mode(const char* op, const std::string& name, bool allow_valid) {
  if (name == "zeros") return SpatialMode::zeros;
  if (name == "replicate") return SpatialMode::replicate;
  if (name == "reflect") return SpatialMode::reflect;
  if (name == "valid" && allow_valid) return SpatialMode::valid;
  bad_choice(op, "spatial_mode", name,
             allow_valid ? "zeros, replicate, reflect or valid" : "zeros, replicate or reflect");
}

Dtype parse_dtype(const char* op, const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  bad_choice(op, "dtype", name, "float32, bfloat16 or float16");
}

}  // namespace cvk
