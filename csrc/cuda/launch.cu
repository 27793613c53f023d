#include <stdexcept>

#include "launch.h"

namespace cvk {

void check_cuda(cudaError_t status, const std::string& what, const std::string& shapes) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // this call reports it; the next one must not find it again
  const bool none =
      status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary;
  throw std::runtime_error(what + " (" + shapes + "): " + (none ? "there is no GPU to run it on; " : "") +
                           "CUDA says '" + cudaGetErrorString(status) + "' (" + cudaGetErrorName(status) +
                           ")");
}

OnDevice::OnDevice(int device, const std::string& what, const std::string& shapes)
    : device_(device), before_(device) {
  check_cuda(cudaGetDevice(&before_), what, shapes);
  // Also where it is the current one: in a fresh thread this makes its context current, which the driver
  // needs to encode a tensor map.
  check_cuda(cudaSetDevice(device_), what, shapes);
}

OnDevice::~OnDevice() {
  if (before_ != device_) cudaSetDevice(before_);
}

int device_attribute(cudaDeviceAttr attribute, int device, const std::string& what) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), what, "device " + std::to_string(device));
  return value;
}

}  // namespace cvk
