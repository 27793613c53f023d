#include "bindings.h"
#include "bindings_index.h"
#include "common/norm_rehearsal.h"

namespace py = pybind11;

namespace cvk {
namespace {

py::tuple result(const NormRehearsal& done) {
  return py::make_tuple(done.words_read, done.words_written, done.blocks, done.written);
}

py::tuple group(const Tensor& out, const Tensor& x, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& shift, const Address& weight, const Address& bias,
                const std::string& parameters, int64_t groups, double eps, bool silu, bool lone_first,
                const std::array<int64_t, 3>& repeat, const std::string& dtype, uintptr_t workspace,
                int64_t workspace_floats) {
  const std::optional<Tensor5> factor = view(scale), offset = view(shift);
  return result(rehearse_group_norm(group_norm_arguments(out, x, factor, offset, weight, bias, parameters,
                                                         groups, eps, silu, lone_first, repeat, dtype,
                                                         workspace, workspace_floats)));
}

py::tuple rms(const Tensor& out, const Tensor& x, uintptr_t weight, const Address& bias, double eps,
              bool silu, const std::string& dtype) {
  return result(rehearse_rms_norm(rms_norm_arguments(out, x, weight, bias, eps, silu, dtype)));
}

}  // namespace

void bind_norm_rehearsals(py::module_& m) {
  using py::arg;
  m.def(
      "group_norm_workspace",
      [](const Tensor& x, const std::string& dtype) {
        return group_norm_workspace(view(x), parse_dtype("group_norm", dtype));
      },
      arg("x"), arg("dtype"), "How many float32 numbers a group norm of x on a GPU needs room for.");
  m.def("rehearse_group_norm", group, arg("out"), arg("x"), arg("scale").none(true), arg("shift").none(true),
        arg("weight").none(true), arg("bias").none(true), arg("parameters"), arg("groups"), arg("eps"),
        arg("silu"), arg("lone_first"), arg("repeat"), arg("dtype"), arg("workspace"),
        arg("workspace_floats"),
        "Run the threads of the CUDA group norm on the host, one after another. Returns (whether the "
        "statistics read 16 bytes at a time, whether the pass that writes does, blocks, elements written).");
  m.def("rehearse_rms_norm", rms, arg("out"), arg("x"), arg("weight"), arg("bias").none(true), arg("eps"),
        arg("silu"), arg("dtype"), "The same of the RMS norm, which has one pass.");
}

}  // namespace cvk
