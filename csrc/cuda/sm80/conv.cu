// The convolution for sm_80 and the later 8.x: CUTLASS's implicit GEMM with cp.async and mma, bias and
// residual in the epilogue. Its strides are 32-bit and its output is a matrix: longer inputs go in pieces of
// time.
#include <cutlass/conv/kernel/default_conv3d_fprop_with_broadcast.h>
#include <cutlass/cutlass.h>
#include <cutlass/device_kernel.h>
#include <cutlass/gemm/threadblock/threadblock_swizzle.h>
#include <cutlass/numeric_conversion.h>

#include "../../common/check.h"
#include "../causal_conv3d.h"

namespace cvk {

namespace sm80 {

// (sum + bias) + residual, in float, rounded once. CUTLASS's own always read a residual.
template <class Element>
class BiasResidual {
 public:
  using ElementOutput = Element;
  using ElementC = Element;
  using ElementAccumulator = float;
  using ElementCompute = float;
  using ElementVector = Element;
  using ElementZ = Element;
  using ElementT = Element;
  static int const kElementsPerAccess = kConvAlignment;
  static int const kCount = kElementsPerAccess;
  static bool const kIsHeavy = false;
  static bool const kIsSingleSource = true;
  static bool const kStoreZ = true;
  static bool const kStoreT = false;
  using FragmentAccumulator = cutlass::Array<float, kCount>;
  using FragmentCompute = cutlass::Array<float, kCount>;
  using FragmentC = cutlass::Array<Element, kCount>;
  using FragmentOutput = cutlass::Array<Element, kCount>;
  using FragmentZ = FragmentOutput;
  using FragmentT = FragmentOutput;

  struct Params {
    bool has_residual = false;
  };

  CUTLASS_HOST_DEVICE BiasResidual(Params const& params) : has_residual_(params.has_residual) {}
  CUTLASS_HOST_DEVICE bool is_source_needed() const { return has_residual_; }
  CUTLASS_HOST_DEVICE void set_k_partition(int, int) {}  // K is never split

  CUTLASS_HOST_DEVICE void operator()(FragmentZ& z, FragmentT&, FragmentAccumulator const& sum,
                                      FragmentC const& residual, FragmentCompute const& bias) const {
    FragmentCompute added = cutlass::NumericArrayConverter<float, Element, kCount>()(residual);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kCount; ++i) added[i] += sum[i] + bias[i];
    z = cutlass::NumericArrayConverter<Element, float, kCount>()(added);
  }

  CUTLASS_HOST_DEVICE void operator()(FragmentZ& z, FragmentT&, FragmentAccumulator const& sum,
                                      FragmentCompute const& bias) const {
    FragmentCompute added;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kCount; ++i) added[i] = sum[i] + bias[i];
    z = cutlass::NumericArrayConverter<Element, float, kCount>()(added);
  }

 private:
  bool has_residual_;
};

// A tile of 128 x 128 x 32, four stages: 64 KB of shared memory, which Ada's 99 KB hold as well.
template <class Element>
using Kernel = typename cutlass::conv::kernel::DefaultConv3dFpropWithBroadcast<
    Element, cutlass::layout::TensorNDHWC, Element, cutlass::layout::TensorNDHWC, Element,
    cutlass::layout::TensorNDHWC, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>, BiasResidual<Element>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<4>, 4, cutlass::arch::OpMultiplyAdd,
    cutlass::conv::IteratorAlgorithm::kOptimized, cutlass::conv::StrideSupport::kStrided>::Kernel;

constexpr const char* kName = "causal_conv3d sm_80 128x128x32";
constexpr int64_t kInt32 = int64_t{1} << 31;

cutlass::layout::TensorNDHWC layout(const Tensor5& tensor) {
  const Tensor5 t = with_dense_strides(tensor);
  // Where there is one of something its stride is not walked, and a dense one may not fit.
  auto fit = [](int64_t size, int64_t stride) { return static_cast<int>(size > 1 ? stride : 0); };
  return {static_cast<int>(t.stride[4]), fit(t.size[3], t.stride[3]), fit(t.size[2], t.stride[2]),
          fit(t.size[0], t.stride[0])};
}

int64_t span(const Tensor5& t) {
  int64_t last = 0;
  for (int d = 0; d < 5; ++d) last += (t.size[d] - 1) * t.stride[d];
  return last + 1;
}

Tensor5 slice(Tensor5 t, int dim, int64_t first, int64_t count) {
  t.data = static_cast<char*>(t.data) + first * t.stride[dim] * 2;
  t.size[dim] = count;
  return t;
}

template <class Element>
void launch(const ImplicitConv& conv, const Target& target) {
  using Conv = Kernel<Element>;
  static_assert(sizeof(typename Conv::SharedStorage) <= 99 * 1024, "what a block has on Ada");
  auto n = [](int64_t size) { return static_cast<int>(size); };
  const int64_t *x = conv.x.size, *w = conv.weight.size, *y = conv.out.size;
  const cutlass::conv::Conv3dProblemSize size(
      n(x[0]), n(x[2]), n(x[3]), n(x[4]), n(x[1]), n(w[0]), n(w[2]), n(w[3]), n(w[4]), n(y[2]), n(y[3]),
      n(y[4]), n(conv.before[0]), n(conv.before[1]), n(conv.before[2]), n(conv.stride[0]), n(conv.stride[1]),
      n(conv.stride[2]), n(conv.dilation[0]), n(conv.dilation[1]), n(conv.dilation[2]),
      cutlass::conv::Mode::kCrossCorrelation);
  auto at = [](const Tensor5& t) {
    return typename Conv::TensorRefA(static_cast<Element*>(t.data), layout(t));
  };
  const Tensor5& source = conv.residual ? *conv.residual : conv.out;
  const typename Conv::Arguments arguments(size, at(conv.x), at(conv.weight), at(source), at(conv.out),
                                           {conv.residual != nullptr}, cutlass::conv::SplitKMode::kSerial,
                                           const_cast<void*>(conv.bias));
  typename Conv::Params params(arguments);
  typename Conv::ThreadblockSwizzle swizzle;
  const dim3 grid = swizzle.get_grid_shape(params.grid_tiled_shape);
  const int shared = static_cast<int>(sizeof(typename Conv::SharedStorage));
  const void* kernel = reinterpret_cast<const void*>(cutlass::Kernel<Conv>);
  const std::string shapes = describe(conv);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), kName,
             shapes);
  void* values[] = {&params};
  check_cuda(cudaLaunchKernel(kernel, grid, dim3(Conv::kThreadCount), values, shared, target.stream), kName,
             shapes);
}

template <class Element>
void run(const ImplicitConv& conv, const Target& target) {
  require(pixels_are_rows(conv.out) && (!conv.residual || pixels_are_rows(*conv.residual)), kName,
          "out or residual is a window into a larger tensor, expected pixels one after another; " +
              describe(conv));
  // All at once where 32-bit offsets reach, from the first zeros in front of the input to its end; else each
  // batch entry by itself, in pieces of time.
  auto reaches = [](const ImplicitConv& c) {
    const Tensor5 x = with_dense_strides(c.x);
    int64_t zeros = 0;
    for (int d = 0; d < 3; ++d) zeros += c.before[d] * x.stride[2 + d];
    return zeros + span(c.x) < kInt32 && span(c.out) < kInt32 && (!c.residual || span(*c.residual) < kInt32);
  };
  auto batch_is_rows = [](const Tensor5& t) {
    return t.size[0] == 1 || t.stride[0] == t.size[2] * with_dense_strides(t).stride[2];
  };
  const bool whole =
      reaches(conv) && batch_is_rows(conv.out) && (!conv.residual || batch_is_rows(*conv.residual));
  if (whole) return launch<Element>(conv, target);
  const int64_t frames = conv.out.size[2];
  for (int64_t b = 0; b < conv.out.size[0]; ++b) {
    for (int64_t first = 0, count = 0; first < frames; first += count) {
      for (count = frames - first;; count = (count + 1) / 2) {
        const TimePiece piece = time_piece(first, count, conv.x.size[2], conv.weight.size[2],
                                           conv.dilation[0], conv.stride[0], conv.before[0]);
        ImplicitConv part = conv;
        part.x = slice(slice(conv.x, 0, b, 1), 2, piece.source, piece.frames);
        part.out = slice(slice(conv.out, 0, b, 1), 2, first, count);
        part.before[0] = piece.zeros;
        Tensor5 added;
        if (conv.residual) {
          added = slice(slice(*conv.residual, 0, b, 1), 2, first, count);
          part.residual = &added;
        }
        if (!reaches(part)) {
          require(count > 1, kName,
                  "one output frame sees input of 2^31 elements or more, expected fewer; " + describe(conv));
          continue;
        }
        launch<Element>(part, target);
        break;
      }
    }
  }
}

}  // namespace sm80

void conv_sm80(const ImplicitConv& conv, const Target& target) {
  if (conv.dtype == Dtype::bfloat16) {
    sm80::run<cutlass::bfloat16_t>(conv, target);
  } else {
    sm80::run<cutlass::half_t>(conv, target);
  }
}

}  // namespace cvk
