// The Python module `_C_cpu`: unpacks arguments, releases the GIL, calls.
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "bindings_norms.h"
#include "cpu/causal_conv3d_direct.h"
#include "cpu/causal_conv3d_tiles.h"
#include "cpu/causal_conv3d_winograd.h"
#include "cpu/causal_pad3d.h"
#include "cpu/fingerprint.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/rates.h"
#include "cpu/upsample_conv.h"

namespace py = pybind11;

namespace cvk {
namespace {

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> result;
  for (Isa isa : isas) result.push_back(isa_name(isa));
  return result;
}

void pad(const Tensor& out, const std::optional<Tensor>& x, const std::optional<Tensor>& state,
         int64_t causal_padding, const std::array<int64_t, 4>& spatial_padding,
         const std::string& temporal_mode, const std::string& spatial_mode, int itemsize, int num_threads) {
  const std::optional<Tensor5> past = view(state);
  const CausalPad3d pad =
      pad_arguments(out, x, past, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize);
  py::gil_scoped_release unlocked;
  causal_pad3d(pad, num_threads);
}

void pad_in_place(const Tensor& storage, const std::optional<Tensor>& state, int64_t causal_padding,
                  const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
                  const std::string& spatial_mode, int itemsize, int num_threads) {
  pad(storage, std::nullopt, state, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize,
      num_threads);
}

void pad_copy(const Tensor& out, const Tensor& x, const std::optional<Tensor>& state, int64_t causal_padding,
              const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
              const std::string& spatial_mode, int itemsize, int num_threads) {
  pad(out, x, state, causal_padding, spatial_padding, temporal_mode, spatial_mode, itemsize, num_threads);
}

// What a convolution on the CPU is given. State and residual point into the views and must outlive the
// result.
CausalConv3d cpu_arguments(const char* op, const Tensor& out, const Tensor& x, const Tensor& weight,
                           std::optional<uintptr_t> bias, const std::optional<Tensor5>& past,
                           const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
                           const std::string& spatial_mode, const std::string& dtype) {
  require(!bias || *bias != 0, op, "bias has a null address, expected one, or None for no bias");
  CausalConv3d conv{};
  conv.x = view(x);
  conv.weight = view(weight);
  conv.bias = reinterpret_cast<const void*>(bias.value_or(0));
  conv.state = pointer(past);
  conv.out = view(out);
  std::fill(conv.stride, conv.stride + 3, 1);
  std::fill(conv.dilation, conv.dilation + 3, 1);
  conv.top = spatial_padding[0];
  conv.bottom = spatial_padding[1];
  conv.left = spatial_padding[2];
  conv.right = spatial_padding[3];
  conv.temporal_mode = parse_temporal_mode(op, temporal_mode, true);
  conv.spatial_mode = parse_spatial_mode(op, spatial_mode, true);
  conv.dtype = conv.weight_dtype = parse_dtype(op, dtype);
  return conv;
}

// Which matrix tiles the packed weights are for.
enum class TileUnit { none, amx, emulated };

TileUnit parse_tiles(const char* op, const std::string& name) {
  if (name.empty()) return TileUnit::none;
  require(name == "amx" || name == "emulated", op, "got tiles '" + name + "', expected amx, emulated or ''");
  return name == "amx" ? TileUnit::amx : TileUnit::emulated;
}

// By matrix tiles or Winograd's algorithm if there are packed weights, else by the direct one.
void run(const CausalConv3d& conv, const Address& packed, TileUnit tiles, Isa isa, int num_threads,
         bool doubled = false) {
  py::gil_scoped_release unlocked;
  if (packed && tiles != TileUnit::none) {
    const auto* weights = reinterpret_cast<const uint16_t*>(*packed);
    causal_conv3d_tiles(conv, weights, doubled, tiles == TileUnit::emulated, num_threads);
  } else if (packed) {
    causal_conv3d_winograd(conv, reinterpret_cast<const float*>(*packed), isa, num_threads);
  } else {
    causal_conv3d_direct(conv, isa, num_threads);
  }
}

void conv(const Tensor& out, const Tensor& x, const Tensor& weight, std::optional<uintptr_t> bias,
          const std::optional<Tensor>& state, const std::optional<Tensor>& residual,
          const std::array<int64_t, 3>& stride, const std::array<int64_t, 3>& dilation,
          const std::array<int64_t, 4>& spatial_padding, const std::string& temporal_mode,
          const std::string& spatial_mode, const std::string& dtype, const std::string& isa, int num_threads,
          std::optional<uintptr_t> packed, const std::optional<std::string>& weight_dtype,
          const std::string& tiles, bool doubled) {
  constexpr const char* op = "causal_conv3d";
  std::optional<Tensor5> past = view(state), added = view(residual);
  CausalConv3d conv =
      cpu_arguments(op, out, x, weight, bias, past, spatial_padding, temporal_mode, spatial_mode, dtype);
  conv.residual = pointer(added);
  std::copy(stride.begin(), stride.end(), conv.stride);
  std::copy(dilation.begin(), dilation.end(), conv.dilation);
  if (weight_dtype) conv.weight_dtype = parse_dtype(op, *weight_dtype);
  require(!doubled || (packed && !tiles.empty()), op, "doubled pixels are read on matrix tiles alone");
  for (int64_t d = 3; doubled && d < 5; ++d) {
    conv.x.size[d] *= 2;
    if (past) past->size[d] *= 2;
  }
  run(conv, packed, parse_tiles(op, tiles), parse_supported_isa(isa), num_threads, doubled);
}

// A convolution that was checked, but for its addresses; the tensors given to begin with say sizes and
// strides.
class ConvPlan {
 public:
  ConvPlan(const Tensor& out, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& state,
           const std::optional<Tensor>& residual, const std::array<int64_t, 3>& stride,
           const std::array<int64_t, 3>& dilation, const std::array<int64_t, 4>& spatial_padding,
           const std::string& temporal_mode, const std::string& spatial_mode, const std::string& dtype,
           const std::string& isa, const std::string& tiles)
      : state_(view(state)),
        residual_(view(residual)),
        isa_(parse_supported_isa(isa)),
        tiles_(parse_tiles("causal_conv3d", tiles)) {
    conv_ = cpu_arguments("causal_conv3d", out, x, weight, std::nullopt, state_, spatial_padding,
                          temporal_mode, spatial_mode, dtype);
    std::copy(stride.begin(), stride.end(), conv_.stride);
    std::copy(dilation.begin(), dilation.end(), conv_.dilation);
  }

  // Addresses of tensors like those; 0: there is none.
  void run(uintptr_t out, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t state, uintptr_t residual,
           uintptr_t packed, int num_threads) const {
    CausalConv3d conv = conv_;
    std::optional<Tensor5> past = state_, added = residual_;
    conv.out.data = reinterpret_cast<void*>(out);
    conv.x.data = reinterpret_cast<void*>(x);
    conv.weight.data = reinterpret_cast<void*>(weight);
    conv.bias = reinterpret_cast<const void*>(bias);
    if (past) past->data = reinterpret_cast<void*>(state);
    if (added) added->data = reinterpret_cast<void*>(residual);
    conv.state = pointer(past);
    conv.residual = pointer(added);
    cvk::run(conv, packed ? Address(packed) : std::nullopt, tiles_, isa_, num_threads);
  }

  // Of weights at an address.
  auto weight_fingerprint(uintptr_t weight, int itemsize) const {
    Tensor5 tensor = conv_.weight;
    tensor.data = reinterpret_cast<void*>(weight);
    return fingerprint(tensor, itemsize);
  }

 private:
  std::optional<Tensor5> state_, residual_;
  Isa isa_;
  TileUnit tiles_;
  CausalConv3d conv_;
};

Doubling parse_doubling(const char* op, const std::string& name) {
  if (name == "none") return Doubling::none;
  if (name == "pairs") return Doubling::pairs;
  require(name == "first_single", op,
          "got doubled_frames '" + name + "', expected none, pairs or first_single");
  return Doubling::first_single;
}

void upsample(const Tensor& out, const Tensor& x, const Tensor& weight, std::optional<uintptr_t> bias,
              const std::optional<Tensor>& state, const std::string& doubled_frames, bool space,
              const std::string& temporal_mode, const std::string& spatial_mode, const std::string& dtype,
              const std::string& isa, int num_threads, uintptr_t packed) {
  constexpr const char* op = "upsample_conv";
  const std::optional<Tensor5> past = view(state);
  const UpsampleConv upsample{
      cpu_arguments(op, out, x, weight, bias, past, {1, 1, 1, 1}, temporal_mode, spatial_mode, dtype),
      parse_doubling(op, doubled_frames), space};
  const Isa chosen = parse_supported_isa(isa);
  py::gil_scoped_release unlocked;
  upsample_conv_winograd(upsample, reinterpret_cast<const float*>(packed), chosen, num_threads);
}

int64_t packed_floats(const Tensor& weight, const std::string& isa, const std::array<int64_t, 2>& zero_taps) {
  return winograd_packed_floats(view(weight), winograd_points(zero_taps[0], zero_taps[1]),
                                parse_supported_isa(isa));
}

void pack(uintptr_t packed, const Tensor& weight, const std::string& dtype, const std::string& isa,
          int num_threads, const std::array<int64_t, 2>& zero_taps) {
  const Dtype type = parse_dtype("winograd_pack", dtype);
  const Isa chosen = parse_supported_isa(isa);
  const PointWindow points = winograd_points(zero_taps[0], zero_taps[1]);
  require(packed != 0, "winograd_pack", "packed has a null address");
  py::gil_scoped_release unlocked;
  winograd_pack(view(weight), type, points, reinterpret_cast<float*>(packed), chosen, num_threads);
}

int64_t tile_bytes(const Tensor& weight) { return tiles_packed_bytes(view(weight)); }

void pack_tiles(uintptr_t packed, const Tensor& weight, int num_threads) {
  require(packed != 0, "tiles_pack", "packed has a null address");
  py::gil_scoped_release unlocked;
  tiles_pack(view(weight), reinterpret_cast<uint16_t*>(packed), num_threads);
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace cvk

PYBIND11_MODULE(_C_cpu, m) {
  using py::arg;
  m.doc() = "Native CPU kernels. Tensors are tuples (address, 5 sizes, 5 strides in elements).";
  cvk::bind_norms(m);
  m.def(
      "compiled_isas", [] { return cvk::names(cvk::compiled_isas()); },
      "Instruction sets in this build, best first.");
  m.def(
      "supported_isas", [] { return cvk::names(cvk::supported_isas()); },
      "Those of them that this processor has, best first.");
  m.def("openmp", cvk::has_openmp, "Whether the kernels use more than one thread.");
  m.def("causal_pad3d_", cvk::pad_in_place, arg("storage"), arg("state").none(true), arg("causal_padding"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("itemsize"),
        arg("num_threads"), "Fill the border of a storage whose body is written.");
  m.def("causal_pad3d", cvk::pad_copy, arg("out"), arg("x"), arg("state").none(true), arg("causal_padding"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("itemsize"),
        arg("num_threads"), "Write x and its border into out.");
  m.def("causal_conv3d", cvk::conv, arg("out"), arg("x"), arg("weight"), arg("bias").none(true),
        arg("state").none(true), arg("residual").none(true), arg("stride"), arg("dilation"),
        arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"), arg("dtype"), arg("isa"),
        arg("num_threads"), arg("packed") = py::none(), arg("weight_dtype") = py::none(), arg("tiles") = "",
        arg("doubled") = false,
        "out = causal convolution of x, plus bias and residual, in float32: by Winograd's algorithm with "
        "weights that winograd_pack wrote, on matrix tiles (amx or emulated) with those of tiles_pack, else "
        "by the direct one. doubled: on tiles, of each pixel of x and the state read as 2 x 2 equal ones.");
  py::class_<cvk::ConvPlan>(m, "ConvPlan", "A causal convolution that was checked, but for its addresses.")
      .def(py::init<const cvk::Tensor&, const cvk::Tensor&, const cvk::Tensor&,
                    const std::optional<cvk::Tensor>&, const std::optional<cvk::Tensor>&,
                    const std::array<int64_t, 3>&, const std::array<int64_t, 3>&,
                    const std::array<int64_t, 4>&, const std::string&, const std::string&, const std::string&,
                    const std::string&, const std::string&>(),
           arg("out"), arg("x"), arg("weight"), arg("state").none(true), arg("residual").none(true),
           arg("stride"), arg("dilation"), arg("spatial_padding"), arg("temporal_mode"), arg("spatial_mode"),
           arg("dtype"), arg("isa"), arg("tiles") = "")
      .def("run", &cvk::ConvPlan::run, "Compute it for tensors at these addresses; 0: there is none.")
      .def("weight_fingerprint", &cvk::ConvPlan::weight_fingerprint,
           "The fingerprint of the weights at an address.");
  m.def("upsample_conv", cvk::upsample, arg("out"), arg("x"), arg("weight"), arg("bias").none(true),
        arg("state").none(true), arg("doubled_frames"), arg("space"), arg("temporal_mode"),
        arg("spatial_mode"), arg("dtype"), arg("isa"), arg("num_threads"), arg("packed"),
        "out = causal convolution of the upsampled x, by Winograd's algorithm: a kernel for each phase, the "
        "sizes "
        "of `weight` those of one of them.");
  const std::array<int64_t, 2> none = {-1, -1};
  m.def("winograd_packed_floats", cvk::packed_floats, arg("weight"), arg("isa"), arg("zero_taps") = none,
        "Floats that winograd_pack writes.");
  m.def(
      "winograd_pack", cvk::pack, arg("packed"), arg("weight"), arg("dtype"), arg("isa"), arg("num_threads"),
      arg("zero_taps") = none,
      "Transform the weights of a kernel of 3x3 and up to 3 frames; zero_taps: row and column of it that are "
      "zeros.");
  m.def("has_tiles", cvk::has_tiles, "Whether the build, the processor and the system have AMX's tiles.");
  m.def("tiles_packed_bytes", cvk::tile_bytes, arg("weight"), "Bytes that tiles_pack writes.");
  m.def("tiles_pack", cvk::pack_tiles, arg("packed"), arg("weight"), arg("num_threads"),
        "Put bfloat16 weights in the order in which matrix tiles take them.");
  m.def(
      "advise_huge_pages",
      [](uintptr_t address, int64_t bytes) {
        cvk::advise_huge_pages(reinterpret_cast<void*>(address), bytes);
      },
      arg("address"), arg("bytes"), "Ask the system to back fresh memory with huge pages.");
  m.def(
      "fingerprint",
      [](const cvk::Tensor& tensor, int itemsize) { return cvk::fingerprint(cvk::view(tensor), itemsize); },
      arg("tensor"), arg("itemsize"), "Checksum of a few hundred elements, evenly spread.");
  m.def(
      "fma_rate",
      [](const std::string& isa, int num_threads, double milliseconds) {
        return cvk::fma_rate(cvk::parse_supported_isa(isa), num_threads, milliseconds);
      },
      arg("isa"), arg("num_threads"), arg("milliseconds"), py::call_guard<py::gil_scoped_release>(),
      "GFLOP/s of fused multiply-adds in registers.");
  m.def(
      "micro_kernel_rate",
      [](const std::string& isa, int num_threads, double milliseconds) {
        return cvk::micro_kernel_rate(cvk::parse_supported_isa(isa), num_threads, milliseconds);
      },
      arg("isa"), arg("num_threads"), arg("milliseconds"), py::call_guard<py::gil_scoped_release>(),
      "GFLOP/s of the convolutions' micro-kernel on data in the first-level cache.");
}
