#include "isa.h"

#include <stdexcept>

namespace cvk {

namespace {

// Every feature that the build switches on for the unit, or the compiler may use one that is not there.
bool processor_has(Isa isa) {
  switch (isa) {
#ifdef CVK_HAVE_AVX512
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef CVK_HAVE_AVX2
    case Isa::avx2:  // f16c is older than avx2, and no processor has the younger one alone
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    default:
      return isa == Isa::portable;
  }
}

}  // namespace

std::vector<Isa> compiled_isas() {
  return {
#ifdef CVK_HAVE_AVX512
      Isa::avx512,
#endif
#ifdef CVK_HAVE_AVX2
      Isa::avx2,
#endif
      Isa::portable};
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> supported;
  for (Isa isa : compiled_isas())
    if (processor_has(isa)) supported.push_back(isa);
  return supported;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

Isa parse_supported_isa(const std::string& name) {
  std::string listed;
  for (Isa isa : supported_isas()) {
    if (name == isa_name(isa)) return isa;
    listed += (listed.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("isa: got '" + name + "', expected one that this build and processor have (" +
                              listed + ")");
}

}  // namespace cvk
