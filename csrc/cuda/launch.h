// Where a launch goes, and what is raised when it fails: the kernel, the shapes, CUDA's words.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace cvk {

struct Target {
  int device;
  cudaStream_t stream;
};

// Throws std::runtime_error unless `status` is success. `what` names the kernel or the step.
void check_cuda(cudaError_t status, const std::string& what, const std::string& shapes);

// Makes a device the current one, and the one before current again at the end.
class OnDevice {
 public:
  OnDevice(int device, const std::string& what, const std::string& shapes);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, before_;
};

int device_attribute(cudaDeviceAttr attribute, int device, const std::string& what);

}  // namespace cvk
