#include "bindings_cuda.h"

#include "common/index.h"

namespace py = pybind11;

namespace cvk {
namespace {

constexpr const char* kConv = "causal_conv3d";

TimeTaps taps(int64_t frames, int64_t kernel, int64_t dilation, int64_t stride, bool has_state,
              const std::string& temporal_mode) {
  require(frames >= 1 && kernel >= 1 && dilation >= 1 && stride >= 1, kConv,
          "got " + std::to_string(frames) + " frames, " + std::to_string(kernel) + " taps, dilation " +
              std::to_string(dilation) + ", stride " + std::to_string(stride) +
              ", expected at least 1 of each");
  return time_taps(frames, kernel, dilation, stride, has_state,
                   parse_temporal_mode(kConv, temporal_mode, true));
}

}  // namespace

void bind_time_taps(py::module_& m) {
  using py::arg;
  py::class_<TimeTaps>(m, "TimeTaps", py::module_local(),
                       "What a convolution reads of time: see csrc/common/index.h.")
      .def_readonly("first", &TimeTaps::first)
      .def_readonly("count", &TimeTaps::count)
      .def_readonly("step", &TimeTaps::step)
      .def_readonly("zeros", &TimeTaps::zeros)
      .def_readonly("copied", &TimeTaps::copied)
      .def_readonly("summed", &TimeTaps::summed);
  m.def("time_taps", taps, arg("frames"), arg("kernel"), arg("dilation"), arg("stride"), arg("has_state"),
        arg("temporal_mode"), "Which taps are computed, and which frames stand in front.");
}

}  // namespace cvk
