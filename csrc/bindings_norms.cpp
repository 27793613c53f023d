#include "bindings_norms.h"

#include "bindings.h"
#include "cpu/group_norm.h"
#include "cpu/isa.h"
#include "cpu/rms_norm.h"

namespace py = pybind11;

namespace cvk {
namespace {

// Norms that were checked, but for their addresses; the tensors given to begin with say sizes and strides.
// `run` takes the addresses of tensors like those, weight and bias in float32; 0: there is none.
class GroupNormPlan {
 public:
  GroupNormPlan(const Tensor& out, const Tensor& x, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& shift, int64_t groups, double eps, bool silu, bool lone_first,
                const std::array<int64_t, 3>& repeat, const std::string& dtype, const std::string& isa)
      : scale_(view(scale)), shift_(view(shift)), isa_(parse_supported_isa(isa)) {
    norm_.x = view(x);
    norm_.out = view(out);
    norm_.groups = groups;
    norm_.eps = eps;
    norm_.silu = silu;
    norm_.lone_first = lone_first;
    std::copy(repeat.begin(), repeat.end(), norm_.repeat);
    norm_.dtype = parse_dtype("group_norm", dtype);
  }

  void run(uintptr_t out, uintptr_t x, uintptr_t scale, uintptr_t shift, uintptr_t weight, uintptr_t bias,
           int num_threads) const {
    GroupNorm norm = norm_;
    std::optional<Tensor5> factor = scale_, offset = shift_;
    norm.out.data = reinterpret_cast<void*>(out);
    norm.x.data = reinterpret_cast<void*>(x);
    if (factor) factor->data = reinterpret_cast<void*>(scale);
    if (offset) offset->data = reinterpret_cast<void*>(shift);
    norm.scale = pointer(factor);
    norm.shift = pointer(offset);
    norm.weight = reinterpret_cast<const float*>(weight);
    norm.bias = reinterpret_cast<const float*>(bias);
    py::gil_scoped_release unlocked;
    group_norm(norm, isa_, num_threads);
  }

 private:
  std::optional<Tensor5> scale_, shift_;
  Isa isa_;
  GroupNorm norm_{};
};

class RmsNormPlan {
 public:
  RmsNormPlan(const Tensor& out, const Tensor& x, double eps, bool silu, const std::string& dtype,
              const std::string& isa)
      : isa_(parse_supported_isa(isa)) {
    norm_.x = view(x);
    norm_.out = view(out);
    norm_.eps = eps;
    norm_.silu = silu;
    norm_.dtype = parse_dtype("rms_norm", dtype);
  }

  void run(uintptr_t out, uintptr_t x, uintptr_t weight, uintptr_t bias, int num_threads) const {
    RmsNorm norm = norm_;
    norm.out.data = reinterpret_cast<void*>(out);
    norm.x.data = reinterpret_cast<void*>(x);
    norm.weight = reinterpret_cast<const float*>(weight);
    norm.bias = reinterpret_cast<const float*>(bias);
    py::gil_scoped_release unlocked;
    rms_norm(norm, isa_, num_threads);
  }

 private:
  Isa isa_;
  RmsNorm norm_{};
};

uintptr_t place(const std::optional<Tensor>& t) { return t ? std::get<0>(*t) : 0; }

void group(const Tensor& out, const Tensor& x, const std::optional<Tensor>& scale,
           const std::optional<Tensor>& shift, const Address& weight, const Address& bias, int64_t groups,
           double eps, bool silu, bool lone_first, const std::array<int64_t, 3>& repeat,
           const std::string& dtype, const std::string& isa, int num_threads) {
  pointer("group_norm", "weight", weight);
  pointer("group_norm", "bias", bias);
  GroupNormPlan(out, x, scale, shift, groups, eps, silu, lone_first, repeat, dtype, isa)
      .run(place(out), place(x), place(scale), place(shift), weight.value_or(0), bias.value_or(0),
           num_threads);
}

void rms(const Tensor& out, const Tensor& x, uintptr_t weight, const Address& bias, double eps, bool silu,
         const std::string& dtype, const std::string& isa, int num_threads) {
  pointer("rms_norm", "bias", bias);
  RmsNormPlan(out, x, eps, silu, dtype, isa).run(place(out), place(x), weight, bias.value_or(0), num_threads);
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
  py::class_<GroupNormPlan>(
      m, "GroupNormPlan", "SiLU(group_norm(x) * scale + shift), scale and shift repeated, but for addresses.")
      .def(py::init<const Tensor&, const Tensor&, const std::optional<Tensor>&, const std::optional<Tensor>&,
                    int64_t, double, bool, bool, const std::array<int64_t, 3>&, const std::string&,
                    const std::string&>(),
           arg("out"), arg("x"), arg("scale").none(true), arg("shift").none(true), arg("groups"), arg("eps"),
           arg("silu"), arg("lone_first"), arg("repeat"), arg("dtype"), arg("isa"))
      .def("run", &GroupNormPlan::run, "Compute it for tensors at these addresses; 0: there is none.");
  py::class_<RmsNormPlan>(m, "RmsNormPlan",
                          "SiLU(x / sqrt(|x|^2 / C + eps) * weight + bias) over channels, but for addresses.")
      .def(py::init<const Tensor&, const Tensor&, double, bool, const std::string&, const std::string&>(),
           arg("out"), arg("x"), arg("eps"), arg("silu"), arg("dtype"), arg("isa"))
      .def("run", &RmsNormPlan::run, "Compute it for tensors at these addresses; bias 0: there is none.");
}

}  // namespace cvk
