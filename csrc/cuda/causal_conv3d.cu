#include <stdexcept>
#include <string>

#include "causal_conv3d.h"
#include "host/conv_tiles.h"

namespace cvk {

namespace {

constexpr const char* kName = "causal_conv3d";

#ifdef CVK_HAVE_SM90
using Launch = void (*)(const ImplicitConv&, const Target&);
constexpr Launch kSm90[] = {conv_sm90<0>, conv_sm90<1>, conv_sm90<2>, conv_sm90<3>};
static_assert(sizeof(kSm90) / sizeof(kSm90[0]) == kConvTileCount, "every tile has a unit");
#endif

}  // namespace

void causal_conv3d(const ImplicitConv& conv, const Target& target) {
  check_implicit_conv(conv);
  const OnDevice here(target.device, kName, describe(conv));
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor, target.device, kName);
  const int minor = device_attribute(cudaDevAttrComputeCapabilityMinor, target.device, kName);
#ifdef CVK_HAVE_SM90
  if (major == 9 && minor == 0)
    return kSm90[choose_conv_tile(conv.x.size[1], conv.out.size[1])](conv, target);
#endif
#ifdef CVK_HAVE_SM80
  if (major == 8) return conv_sm80(conv, target);
#endif
  throw std::runtime_error(std::string(kName) + ": the GPU has compute capability " + std::to_string(major) +
                           "." + std::to_string(minor) + ", and this build holds code for " + CVK_CUDA_ARCHS +
                           ", of which the convolution takes 90a on 9.0 and 80 to 89 on 8.x");
}

}  // namespace cvk
