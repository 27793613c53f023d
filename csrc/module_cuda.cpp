// The Python module `_C_cuda`: unpacks arguments, releases the GIL, launches. Loading it needs no GPU.
#include <sstream>
#include <vector>

#include "bindings_cuda.h"
#include "cuda/causal_conv3d.h"
#include "cuda/causal_pad3d.h"

namespace py = pybind11;

namespace cvk {
namespace {

std::vector<std::string> compiled_archs() {
  std::vector<std::string> archs;
  std::istringstream list(CVK_CUDA_ARCHS);
  for (std::string arch; std::getline(list, arch, ';');) archs.push_back(arch);
  return archs;
}

Target target_of(int device, uintptr_t stream) { return {device, reinterpret_cast<cudaStream_t>(stream)}; }

void pad(const Tensor& out, const std::optional<Tensor>& x, const std::optional<Tensor>& state,
         int64_t causal_padding, const std::array<int64_t, 4>& spatial_padding,
         const std::string& temporal_mode, const std::string& spatial_mode, int itemsize, int device,
         uintptr_t stream) {
  const std::optional<Tensor5> past = view(state);
  const CausalPad3d pad =
      pad_arguments(out, x, past, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize);
  py::gil_scoped_release unlocked;
  causal_pad3d(pad, target_of(device, stream));
}

void pad_in_place(const Tensor& storage, const std::optional<Tensor>& state, int64_t causal_padding,
                  const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
                  const std::string& spatial_mode, int itemsize, int device, uintptr_t stream) {
  pad(storage, std::nullopt, state, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize,
      device, stream);
}

void pad_copy(const Tensor& out, const Tensor& x, const std::optional<Tensor>& state, int64_t causal_padding,
              const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
              const std::string& spatial_mode, int itemsize, int device, uintptr_t stream) {
  pad(out, x, state, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize, device, stream);
}

void conv(const Tensor& out, const Tensor& x, const Tensor& weight, std::optional<uintptr_t> bias,
          const std::optional<Tensor>& residual, const std::array<int64_t, 3>& stride,
          const std::array<int64_t, 3>& dilation, const std::array<int64_t, 3>& before,
          const std::array<int64_t, 3>& after, const std::string& dtype, int device, uintptr_t stream) {
  const std::optional<Tensor5> added = view(residual);
  const ImplicitConv conv =
      conv_arguments(out, x, weight, bias, added, stride, dilation, before, after, dtype);
  py::gil_scoped_release unlocked;
  causal_conv3d(conv, target_of(device, stream));
}

}  // namespace
}  // namespace cvk

PYBIND11_MODULE(_C_cuda, m) {
  using py::arg;
  m.doc() =
      "CUDA kernels. Tensors are tuples (address, 5 sizes, 5 strides in elements); a launch goes to the "
      "stream, a CUstream as a number, and nothing waits for it.";
  cvk::bind_time_taps(m);
  m.def("compiled_archs", cvk::compiled_archs, "GPU architectures in this build, as nvcc numbers them.");
  m.def("causal_pad3d_", cvk::pad_in_place, arg("storage"), arg("state").none(true), arg("causal_padding"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("itemsize"), arg("device"),
        arg("stream"), "Fill the border of a storage whose body is written.");
  m.def("causal_pad3d", cvk::pad_copy, arg("out"), arg("x"), arg("state").none(true), arg("causal_padding"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("itemsize"), arg("device"),
        arg("stream"), "Write x and its border into out, whatever the layouts.");
  m.def("causal_conv3d", cvk::conv, arg("out"), arg("x"), arg("weight"), arg("bias").none(true),
        arg("residual").none(true), arg("stride"), arg("dilation"), arg("before"), arg("after"), arg("dtype"),
        arg("device"), arg("stream"),
        "out = convolution of x between zeros (time, height, width), plus bias and residual. Channels are "
        "innermost everywhere; x, residual and out may be windows into larger buffers.");
}
