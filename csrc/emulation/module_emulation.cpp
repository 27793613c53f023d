// The Python module `_C_emulation`: the index arithmetic of the CUDA kernels, run on the host. It is built
// for the tests (tests/support/emulation.py) and is in no wheel.
#include "../bindings_cuda.h"
#include "../common/index.h"
#include "../cuda/host/conv_tiles.h"
#include "../cuda/host/fast_divide.h"
#include "pad_emulation.h"

namespace py = pybind11;

namespace cvk {
namespace {

constexpr const char* kConv = "causal_conv3d";

py::tuple frame(SourceFrame source) {
  constexpr const char* names[] = {"body", "state", "zero"};
  return py::make_tuple(names[static_cast<int>(source.origin)], source.index);
}

py::tuple pad(const Tensor& out, const std::optional<Tensor>& x, const std::optional<Tensor>& state,
              int64_t causal_padding, const std::array<int64_t, 4>& spatial_padding,
              const std::string& temporal_mode, const std::string& spatial_mode, int itemsize) {
  const std::optional<Tensor5> past = view(state);
  const PadEmulation done = emulate_pad(
      pad_arguments(out, x, past, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize));
  return py::make_tuple(done.transposes, done.item_bytes, done.blocks, done.written);
}

void check_conv(const Tensor& out, const Tensor& x, const Tensor& weight, std::optional<uintptr_t> bias,
                const std::optional<Tensor>& residual, const std::array<int64_t, 3>& stride,
                const std::array<int64_t, 3>& dilation, const std::array<int64_t, 3>& before,
                const std::array<int64_t, 3>& after, const std::string& dtype) {
  const std::optional<Tensor5> added = view(residual);
  check_implicit_conv(conv_arguments(out, x, weight, bias, added, stride, dilation, before, after, dtype));
}

}  // namespace
}  // namespace cvk

PYBIND11_MODULE(_C_emulation, m) {
  using namespace cvk;
  using py::arg;
  m.doc() = "Host emulation of the CUDA kernels' index arithmetic. Tensors are as in _C_cuda.";
  bind_time_taps(m);
  m.def(
      "frame_of_tap",
      [](int64_t z, int64_t k, int64_t stride, const TimeTaps& taps, bool has_state,
         const std::string& mode) {
        return frame(frame_of_tap(z, k, stride, taps, has_state, parse_temporal_mode(kConv, mode, true)));
      },
      arg("z"), arg("k"), arg("stride"), arg("taps"), arg("has_state"), arg("temporal_mode"),
      "The frame that tap k sees at output z: ('body' | 'state' | 'zero', index).");
  m.def(
      "time_piece",
      [](int64_t first, int64_t count, int64_t frames, int64_t kernel, int64_t step, int64_t stride,
         int64_t zeros) {
        const TimePiece piece = time_piece(first, count, frames, kernel, step, stride, zeros);
        return py::make_tuple(piece.source, piece.frames, piece.zeros);
      },
      arg("first"), arg("count"), arg("frames"), arg("kernel"), arg("step"), arg("stride"), arg("zeros"),
      "(first input frame, input frames, zeros in front) of some outputs.");
  m.def(
      "source_frame",
      [](int64_t t, int64_t padding, bool has_state, const std::string& mode) {
        return frame(source_frame(t, padding, has_state, parse_temporal_mode(kConv, mode, true)));
      },
      arg("t"), arg("padding"), arg("has_state"), arg("temporal_mode"), "The frame shown at padded frame t.");
  m.def(
      "source_pixel",
      [](int64_t i, int64_t size, const std::string& mode) {
        return source_pixel(i, size, parse_spatial_mode(kConv, mode, true));
      },
      arg("i"), arg("size"), arg("spatial_mode"), "The pixel shown at coordinate i, -1 for zero.");
  m.def(
      "fast_divide", [](uint32_t n, int64_t divisor) { return fast_divide(divisor)(n); }, arg("n"),
      arg("divisor"), "n / divisor for n below 2^31.");
  m.def("conv_tiles", [] {
    py::list tiles;
    for (const ConvTile& t : kConvTiles) tiles.append(py::make_tuple(t.m, t.n, t.k, t.percent));
    return tiles;
  });
  m.def("choose_conv_tile", choose_conv_tile, arg("in_channels"), arg("out_channels"),
        "Index of the tile that a layer takes on sm_90a.");
  m.def("causal_pad3d", pad, arg("out"), arg("x").none(true), arg("state").none(true), arg("causal_padding"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("itemsize"),
        "Run the threads of the CUDA padding kernel, one after another; without x in place. "
        "Returns (transposes, bytes of an item, blocks, items written).");
  m.def("check_conv", check_conv, arg("out"), arg("x"), arg("weight"), arg("bias").none(true),
        arg("residual").none(true), arg("stride"), arg("dilation"), arg("before"), arg("after"), arg("dtype"),
        "Raise for what the GPU's convolutions refuse.");
}
