#include "implicit_conv.h"

#include <algorithm>

#include "../../common/check.h"

namespace cvk {

namespace {

constexpr const char* kOp = "causal_conv3d";
// Coordinates are 32-bit on the GPU, and a tile may reach over the end.
constexpr int64_t kMost = (int64_t{1} << 31) - 1024;

void check_memory(const char* name, const Tensor5& t) {
  require(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, kOp,
          std::string(name) + " lies at an address that 16 does not divide, expected one that it divides");
  require(t.size[1] % kConvAlignment == 0, kOp,
          std::string(name) + " has " + std::to_string(t.size[1]) + " channels, expected a multiple of 8");
  const Tensor5 dense = with_dense_strides(t);
  bool fits = dense.stride[1] == 1;
  int64_t least = t.size[1];
  for (int d : {4, 3, 2, 0}) {
    fits = fits && dense.stride[d] >= least && dense.stride[d] % kConvAlignment == 0;
    least = dense.stride[d] * t.size[d];
  }
  require(fits, kOp,
          std::string(name) + " has strides " + sizes_text(t.stride, 5) + " for sizes " +
              sizes_text(t.size, 5) +
              ", expected channels innermost, then width, height, time and batch, in multiples of 8");
}

}  // namespace

Tensor5 with_dense_strides(Tensor5 t) {
  if (t.size[1] == 1) t.stride[1] = 1;
  int64_t least = t.size[1];
  for (int d : {4, 3, 2, 0}) {
    if (t.size[d] == 1) t.stride[d] = least;
    least = t.stride[d] * t.size[d];
  }
  return t;
}

bool pixels_are_rows(const Tensor5& tensor) {
  const Tensor5 t = with_dense_strides(tensor);
  return t.stride[3] == t.size[4] * t.stride[4] && t.stride[2] == t.size[3] * t.stride[3];
}

std::string describe(const ImplicitConv& conv) {
  return "x " + sizes_text(conv.x.size, 5) + ", weight " + sizes_text(conv.weight.size, 5) + ", out " +
         sizes_text(conv.out.size, 5);
}

void check_implicit_conv(const ImplicitConv& conv) {
  const int64_t *x = conv.x.size, *w = conv.weight.size, *y = conv.out.size;
  for (const auto& [name, tensor] :
       {std::pair<const char*, const Tensor5&>{"x", conv.x}, {"weight", conv.weight}, {"out", conv.out}}) {
    check_tensor(kOp, name, tensor);
    require(element_count(tensor) > 0, kOp,
            std::string(name) + " has sizes " + sizes_text(tensor.size, 5) + ", expected none of them zero");
  }
  require(conv.dtype != Dtype::float32, kOp, "got dtype float32, expected bfloat16 or float16");
  require(w[1] == x[1], kOp,
          "weight has sizes " + sizes_text(w, 5) + ", expected " + std::to_string(x[1]) + " input channels");
  int64_t size[3];
  for (int d = 0; d < 3; ++d) {
    const int64_t reach = conv.dilation[d] * (w[2 + d] - 1);
    require(conv.stride[d] >= 1 && conv.stride[d] <= 2 && conv.dilation[d] >= 1, kOp,
            "stride is " + sizes_text(conv.stride, 3) + " and dilation " + sizes_text(conv.dilation, 3) +
                ", expected strides of 1 or 2 and dilations of at least 1");
    require(reach <= kConvReach, kOp,
            "the kernel " + sizes_text(w + 2, 3) + " with dilation " + sizes_text(conv.dilation, 3) +
                " reaches over " + std::to_string(reach) + " elements, expected at most " +
                std::to_string(kConvReach));
    require(std::min(conv.before[d], conv.after[d]) >= 0 && std::max(conv.before[d], conv.after[d]) <= reach,
            kOp,
            "zeros are " + sizes_text(conv.before, 3) + " before and " + sizes_text(conv.after, 3) +
                " behind, expected none negative and no more than the kernel reaches");
    const int64_t padded = x[2 + d] + conv.before[d] + conv.after[d];
    size[d] = output_size(padded, w[2 + d], conv.stride[d], conv.dilation[d]);
  }
  check_sizes(kOp, "out", conv.out, {x[0], w[0], size[0], size[1], size[2]});
  const int64_t pixels = y[0] * y[2] * y[3] * y[4];
  require(std::max(pixels, *std::max_element(x, x + 5)) <= kMost, kOp,
          "x has sizes " + sizes_text(x, 5) + " and out " + std::to_string(pixels) +
              " pixels, the kernel takes at most " + std::to_string(kMost) + " of either");
  check_memory("x", conv.x);
  check_memory("out", conv.out);
  check_memory("weight", conv.weight);
  require(
      pixels_are_rows(conv.weight), kOp,
      "weight has strides " + sizes_text(conv.weight.stride, 5) + ", expected its taps one after another");
  if (conv.residual) {
    check_tensor(kOp, "residual", *conv.residual);
    check_sizes(kOp, "residual", *conv.residual, {y[0], y[1], y[2], y[3], y[4]});
    check_memory("residual", *conv.residual);
  }
  require(reinterpret_cast<uintptr_t>(conv.bias) % 16 == 0, kOp,
          "bias lies at an address that 16 does not divide, expected one that it divides");
}

}  // namespace cvk
