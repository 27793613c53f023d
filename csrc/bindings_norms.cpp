#include "bindings_norms.h"

#include "bindings.h"
#include "cpu/group_norm.h"
#include "cpu/isa.h"
#include "cpu/rms_norm.h"

namespace py = pybind11;

namespace cvk {
namespace {

void group(const Tensor& out, const Tensor& x, const std::optional<Tensor>& scale,
           const std::optional<Tensor>& shift, const Address& weight, const Address& bias, int64_t groups,
           double eps, bool silu, bool lone_first, const std::array<int64_t, 3>& repeat,
           const std::string& dtype, const std::string& isa, int num_threads) {
  constexpr const char* op = "group_norm";
  const std::optional<Tensor5> factor = view(scale), offset = view(shift);
  GroupNorm norm{};
  norm.x = view(x);
  norm.out = view(out);
  norm.scale = pointer(factor);
  norm.shift = pointer(offset);
  norm.weight = static_cast<const float*>(pointer(op, "weight", weight));
  norm.bias = static_cast<const float*>(pointer(op, "bias", bias));
  norm.groups = groups;
  norm.eps = eps;
  norm.silu = silu;
  norm.lone_first = lone_first;
  std::copy(repeat.begin(), repeat.end(), norm.repeat);
  norm.dtype = parse_dtype(op, dtype);
  const Isa chosen = parse_supported_isa(isa);
  py::gil_scoped_release unlocked;
  group_norm(norm, chosen, num_threads);
}

void rms(const Tensor& out, const Tensor& x, uintptr_t weight, const Address& bias, double eps, bool silu,
         const std::string& dtype, const std::string& isa, int num_threads) {
  constexpr const char* op = "rms_norm";
  RmsNorm norm{};
  norm.x = view(x);
  norm.out = view(out);
  norm.weight = static_cast<const float*>(pointer(op, "weight", weight));
  norm.bias = static_cast<const float*>(pointer(op, "bias", bias));
  norm.eps = eps;
  norm.silu = silu;
  norm.dtype = parse_dtype(op, dtype);
  const Isa chosen = parse_supported_isa(isa);
  py::gil_scoped_release unlocked;
  rms_norm(norm, chosen, num_threads);
}

}  // namespace

void bind_norms(py::module_& m) {
  using py::arg;
  m.def("group_norm", group, arg("out"), arg("x"), arg("scale").none(true), arg("shift").none(true),
        arg("weight").none(true), arg("bias").none(true), arg("groups"), arg("eps"), arg("silu"),
        arg("lone_first"), arg("repeat"), arg("dtype"), arg("isa"), arg("num_threads"),
        "out = SiLU(group_norm(x) * scale + shift), scale and shift repeated; weight and bias are addresses "
        "of float32.");
  m.def(
      "rms_norm", rms, arg("out"), arg("x"), arg("weight"), arg("bias").none(true), arg("eps"), arg("silu"),
      arg("dtype"), arg("isa"), arg("num_threads"),
      "out = SiLU(x / sqrt(|x|^2 / C + eps) * weight + bias) over channels; weight and bias are addresses of "
      "float32.");
}

}  // namespace cvk
