// The norms of `_C_cpu`.
#pragma once

#include <pybind11/pybind11.h>

namespace cvk {

void bind_norms(pybind11::module_& m);

}  // namespace cvk
