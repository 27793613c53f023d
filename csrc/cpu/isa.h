// Which instruction sets this build holds kernels for, and which of them this processor runs.
#pragma once

#include <string>
#include <vector>

namespace cvk {

enum class Isa : int { avx512, avx2, portable };

// Best first. The build defines CVK_HAVE_<ISA> for every unit that it compiled besides the portable one.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

const char* isa_name(Isa isa);

// Throws std::invalid_argument, naming the supported ones, unless `name` is one of them.
Isa parse_supported_isa(const std::string& name);

}  // namespace cvk
