// The index arithmetic of the GPU's kernels, for Python: to plan with, and to test it where there is no GPU.
#pragma once

#include <pybind11/pybind11.h>

namespace cvk {

void bind_index(pybind11::module_& m);
void bind_norm_rehearsals(pybind11::module_& m);

}  // namespace cvk
