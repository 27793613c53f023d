// Encoding TMA's tensor maps with the driver's answer looked at; raised like any other error of CUDA.
#pragma once

#include <cutlass/cuda_host_adapter.hpp>
#include <stdexcept>
#include <string>

namespace cvk {

// Names the launch, for errors of this thread while it exists.
class TensorMapErrors {
 public:
  TensorMapErrors(const std::string& what, const std::string& shapes) : before_(current()) {
    current() = what + " (" + shapes + ")";
  }
  ~TensorMapErrors() { current() = before_; }
  TensorMapErrors(const TensorMapErrors&) = delete;
  TensorMapErrors& operator=(const TensorMapErrors&) = delete;

  static CUresult check(CUresult result, const char* function) {
    if (result == CUDA_SUCCESS) return result;
    throw std::runtime_error(current() + ": CUDA's " + function + " says error " +
                             std::to_string(static_cast<int>(result)) + " of CUresult");
  }

 private:
  static std::string& current() {
    static thread_local std::string name;
    return name;
  }
  std::string before_;
};

struct Checked_cuTensorMapEncodeTiled {
  template <class... Arguments>
  CUresult operator()(Arguments... arguments) const {
    return TensorMapErrors::check(cutlass::call_cuTensorMapEncodeTiled(arguments...),
                                  "cuTensorMapEncodeTiled");
  }
};

struct Checked_cuTensorMapEncodeIm2col {
  template <class... Arguments>
  CUresult operator()(Arguments... arguments) const {
    return TensorMapErrors::check(cutlass::call_cuTensorMapEncodeIm2col(arguments...),
                                  "cuTensorMapEncodeIm2col");
  }
};

}  // namespace cvk
