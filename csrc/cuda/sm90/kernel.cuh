// The convolution for sm_90a, put together from CUTLASS: TMA loads pixels as im2col and the weights, wgmma
// multiplies, blocks are persistent, and the epilogue adds bias and residual.
//
// CUTLASS 4.2 has a convolution main loop and a persistent kernel, and offers no pair of them: its kernel for
// convolutions runs one tile per block. The persistent one speaks to its main loop in terms of a GEMM of
// M x N x K x L. `GemmMainloop` and `GemmEpilogue` answer in these terms and hand on to the convolution's.
//
// Whoever includes this says first how tensor maps are encoded: `cvk::Checked_cuTensorMapEncodeIm2col` and
// `Checked_cuTensorMapEncodeTiled`, called with the driver's arguments. (CUTLASS only asserts that the driver
// encoded one, and NDEBUG removes that: a launch would read nonsense.)
#pragma once

#include <cutlass/cuda_host_adapter.hpp>
#ifndef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#error "this CUTLASS encodes tensor maps in another way: find out how its errors are noticed"
#endif
#undef CUTLASS_CUDA_DRIVER_WRAPPER_CALL
#define CUTLASS_CUDA_DRIVER_WRAPPER_CALL(function) ::cvk::Checked_##function()

// clang-format off: the header of the convolutions for sm_100 needs the first of these.
#include <cutlass/kernel_hardware_info.hpp>
// clang-format on
#include <cutlass/device_kernel.h>

#include <cute/tensor.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/convnd_problem_shape.hpp>
#include <cutlass/conv/detail.hpp>
#include <cutlass/conv/dispatch_policy.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "../host/conv_tiles.h"
#include "../host/implicit_conv.h"

namespace cvk {

namespace sm90 {

using namespace cute;
using Conv = cutlass::conv::ConvProblemShape<cutlass::conv::Operator::kFprop, 3>;
// M: output pixels, N: output channels, K: (input channels, taps along W, H, T), L: one.
using Mnkl = cute::tuple<int, int, cute::tuple<int, int, int, int>, int>;

// Two warp groups share a tile. The policy of convolutions refuses its own tag for that, which has no kernel.
struct Persistent : cutlass::gemm::KernelTmaWarpSpecializedCooperative {};

template <class Base>
struct GemmMainloop : Base {
  // The kernel asks for strides of rank 3 and reads no more of them.
  using StrideA = Stride<int64_t, _1, _0>;
  using StrideB = Stride<int64_t, _1, _0>;
  using Params = typename Base::Params;
  static constexpr int NumProducerThreadEvents = 1;

  struct Arguments {
    Conv conv;
    typename Base::Arguments pointers;
  };

  static Params to_underlying_arguments(Mnkl const&, Arguments const& arguments, void* workspace) {
    return Base::to_underlying_arguments(arguments.conv, arguments.pointers, workspace);
  }

  static bool can_implement(Mnkl const&, Arguments const& arguments) {
    return Base::can_implement(arguments.conv, arguments.pointers);
  }

  // A GEMM's tiles have a batch as their fifth mode, a convolution's have none.
  template <class Tiles>
  CUTLASS_DEVICE static auto with_batch(Tiles const& tiles) {
    return make_tensor(tiles.data(), append<5>(tiles.layout(), Layout<_1, _0>{}));
  }

  CUTLASS_DEVICE auto load_init(Mnkl const& shape, Params const& params) {
    auto [a, b] = Base::load_init(shape, params);
    return cute::make_tuple(with_batch(a), with_batch(b));
  }

  template <class A, class B, class... Rest>
  CUTLASS_DEVICE void load(Params const& params, typename Base::MainloopPipeline pipeline,
                           typename Base::PipelineState state, cute::tuple<A, B> const& tiles,
                           Rest&&... rest) {
    auto [a, b] = tiles;
    Base::load(params, pipeline, state, cute::make_tuple(a(_, _, _, _, _0{}), b(_, _, _, _, _0{})),
               static_cast<Rest&&>(rest)...);
  }

  // What a thread reads depends on its warp group alone. Said so, the descriptors of shared memory are the
  // same for all lanes of a warp, and stay in its uniform registers.
  template <class Accumulators>
  CUTLASS_DEVICE void mma(typename Base::MainloopPipeline pipeline, typename Base::PipelineState state,
                          Accumulators& accumulators, int tiles, int thread,
                          typename Base::TensorStorage& shared, Params const& params) {
    constexpr int group = cutlass::NumThreadsPerWarpGroup;
    Base::mma(pipeline, state, accumulators, tiles, __shfl_sync(0xffffffff, thread / group, 0) * group,
              shared, params);
  }
};

template <class Base>
struct GemmEpilogue : Base {
  using Base::Base;

  struct Arguments {
    Conv conv;
    typename Base::Arguments epilogue;
  };

  // ((W, H, T, B), Cout, ...): output strides are free, where the GEMM's M has but one.
  static auto pixels_by_channels(Arguments const& arguments) {
    return cutlass::conv::detail::get_transformed_problem_shape_MNKL(arguments.conv);
  }

  static auto to_underlying_arguments(Mnkl const&, Arguments const& arguments, void* workspace) {
    return Base::to_underlying_arguments(pixels_by_channels(arguments), arguments.epilogue, workspace);
  }

  static bool can_implement(Mnkl const&, Arguments const& arguments) {
    return Base::can_implement(pixels_by_channels(arguments), arguments.epilogue);
  }

  static size_t get_workspace_size(Mnkl const&, Arguments const& arguments) {
    return Base::get_workspace_size(pixels_by_channels(arguments), arguments.epilogue);
  }

  static cutlass::Status initialize_workspace(Mnkl const&, Arguments const& arguments, void* workspace,
                                              cudaStream_t stream,
                                              cutlass::CudaHostAdapter* adapter = nullptr) {
    return Base::initialize_workspace(pixels_by_channels(arguments), arguments.epilogue, workspace, stream,
                                      adapter);
  }
};

template <class Element, int kTile>
struct Build {
  static constexpr ConvTile kShape = kConvTiles[kTile];
  using M = Int<kShape.m>;
  using N = Int<kShape.n>;
  using K = Int<kShape.k>;
  using Tile = Shape<M, N, Shape<K>>;
  // Two blocks above each other read the same weights: one load serves both.
  using Cluster = Shape<_2, _1, _1>;

  // (sum + bias) + beta residual, in float, rounded once.
  using Fusion = cutlass::epilogue::fusion::LinCombPerColBias<Element, float, Element, Element, float>;
  using EpilogueBase = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Element, cutlass::layout::TensorNDHWC,
      kConvAlignment, Element, cutlass::layout::TensorNDHWC, kConvAlignment,
      cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion>::CollectiveOp;
  using Epilogue = GemmEpilogue<EpilogueBase>;

  using Mma = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Tile, GMMA::Major::K, GMMA::Major::K>(),
      Layout<Shape<_2, _1, _1>>{}));
  // As many steps as fit beside the epilogue's buffers and a kilobyte of barriers.
  static constexpr int kStages = (cutlass::gemm::collective::detail::sm90_smem_capacity_bytes -
                                  static_cast<int>(sizeof(typename EpilogueBase::SharedStorage)) - 1024) /
                                 ((kShape.m + kShape.n) * kShape.k * static_cast<int>(sizeof(Element)) + 32);
  template <class Rows>
  using Shared = decltype(tile_to_shape(
      cutlass::gemm::collective::detail::ss_smem_selector<GMMA::Major::K, Element, Rows, K>(),
      make_shape(Rows{}, K{}, Int<kStages>{}), Step<_2, _1, _3>{}));
  template <class Copy, class Rows>
  using Traits = cutlass::conv::collective::detail::Sm90ImplicitGemmTileTraits<Copy, Shared<Rows>>;
  using Policy =
      cutlass::conv::MainloopSm90TmaGmmaWarpSpecializedImplicitGemm<cutlass::conv::Operator::kFprop, kStages,
                                                                    3, Cluster, Persistent>;
  using Mainloop =
      GemmMainloop<cutlass::conv::collective::CollectiveConv<Policy, Tile, Element, Element, Mma,
                                                             Traits<SM90_TMA_LOAD_IM2COL, M>,
                                                             Traits<SM90_TMA_LOAD_MULTICAST, N>>>;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<Mnkl, Mainloop, Epilogue, cutlass::gemm::PersistentScheduler>;
  static_assert(kStages >= 3, "loads run ahead of the products");
  static_assert(Kernel::SharedStorageSize <= cutlass::gemm::collective::detail::sm90_smem_capacity_bytes,
                "a block's shared memory holds it all");
};

// Sizes and strides in CUTLASS's order (B, T, H, W, C), which is that of memory.
inline cute::array<int, 5> extent(const Tensor5& t) {
  return {static_cast<int>(t.size[0]), static_cast<int>(t.size[2]), static_cast<int>(t.size[3]),
          static_cast<int>(t.size[4]), static_cast<int>(t.size[1])};
}

inline cute::array<int64_t, 5> strides(const Tensor5& tensor) {
  const Tensor5 t = with_dense_strides(tensor);
  return {t.stride[0], t.stride[2], t.stride[3], t.stride[4], 1};
}

inline cute::array<int, 3> three(const int64_t (&numbers)[3]) {
  return {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), static_cast<int>(numbers[2])};
}

template <class Stride>
Stride output_stride(const Tensor5& tensor) {
  const Tensor5 t = with_dense_strides(tensor);
  return {{t.stride[4], t.stride[3], t.stride[2], t.stride[0]}, {}, {}};
}

// What the kernel is called with; `device` and its number of multiprocessors size the grid.
template <class Element, int kTile>
auto arguments_of(const ImplicitConv& conv, int device, int multiprocessors) {
  using Kernel = typename Build<Element, kTile>::Kernel;
  const Conv shape(cutlass::conv::Mode::kCrossCorrelation, extent(conv.x), strides(conv.x),
                   extent(conv.weight), strides(conv.weight), strides(conv.out), three(conv.before),
                   three(conv.after), three(conv.stride), three(conv.dilation), 1);
  const auto mnkl = cutlass::conv::detail::get_linearized_problem_shape_MNKL(shape);
  typename Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = Mnkl{get<0>(mnkl), get<1>(mnkl), get<2>(mnkl), 1};
  arguments.mainloop.conv = shape;
  arguments.mainloop.pointers = {static_cast<const Element*>(conv.x.data),
                                 static_cast<const Element*>(conv.weight.data)};
  arguments.epilogue.conv = shape;
  auto& epilogue = arguments.epilogue.epilogue;
  epilogue.thread.beta = conv.residual ? 1.0f : 0.0f;
  epilogue.thread.bias_ptr = static_cast<const Element*>(conv.bias);
  // Without a residual nothing is read, but the tensor map of it must be of some memory.
  const Tensor5& source = conv.residual ? *conv.residual : conv.out;
  epilogue.ptr_C = static_cast<const Element*>(source.data);
  epilogue.dC = output_stride<typename Kernel::StrideC>(source);
  epilogue.ptr_D = static_cast<Element*>(conv.out.data);
  epilogue.dD = output_stride<typename Kernel::StrideD>(conv.out);
  arguments.hw_info.device_id = device;
  arguments.hw_info.sm_count = multiprocessors;
  return arguments;
}

}  // namespace sm90

}  // namespace cvk
