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

// The table of kernels that the unit of an instruction set offers under this name.
#ifdef CVK_HAVE_AVX512
#define CVK_IF_AVX512(isa, table) (isa) == Isa::avx512 ? avx512::table:
#else
#define CVK_IF_AVX512(isa, table)
#endif
#ifdef CVK_HAVE_AVX2
#define CVK_IF_AVX2(isa, table) (isa) == Isa::avx2 ? avx2::table:
#else
#define CVK_IF_AVX2(isa, table)
#endif
#define CVK_TABLE_OF(isa, table) (CVK_IF_AVX512(isa, table) CVK_IF_AVX2(isa, table) portable::table)

}  // namespace cvk
