// Launching the convolution for sm_90a.
#pragma once

// In this order: the kernel encodes tensor maps as the first one says.
// clang-format off
#include "tensor_map.h"
#include "kernel.cuh"
// clang-format on

#include "../../common/check.h"
#include "../causal_conv3d.h"

namespace cvk {

namespace sm90 {

template <class Element, int kTile>
void run(const ImplicitConv& conv, const Target& target) {
  using Kernel = typename Build<Element, kTile>::Kernel;
  constexpr ConvTile tile = kConvTiles[kTile];
  const std::string what = "causal_conv3d sm_90a " + std::to_string(tile.m) + "x" + std::to_string(tile.n) +
                           "x" + std::to_string(tile.k);
  const std::string shapes = describe(conv);
  const auto arguments = arguments_of<Element, kTile>(
      conv, target.device, device_attribute(cudaDevAttrMultiProcessorCount, target.device, what));
  require(Kernel::can_implement(arguments), what.c_str(), "CUTLASS cannot compute " + shapes);
  require(Kernel::get_workspace_size(arguments) == 0, what.c_str(), "CUTLASS asks for a workspace");

  const TensorMapErrors named(what, shapes);
  typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
  const void* kernel = reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>);
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::SharedStorageSize),
      what, shapes);
  using Cluster = typename Build<Element, kTile>::Cluster;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = size<0>(Cluster{});
  cluster.val.clusterDim.y = size<1>(Cluster{});
  cluster.val.clusterDim.z = size<2>(Cluster{});
  cudaLaunchConfig_t launch{};
  launch.gridDim = Kernel::get_grid_shape(params);
  launch.blockDim = Kernel::get_block_shape();
  launch.dynamicSmemBytes = Kernel::SharedStorageSize;
  launch.stream = target.stream;
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  void* values[] = {&params};
  check_cuda(cudaLaunchKernelExC(&launch, kernel, values), what, shapes);
}

}  // namespace sm90

template <int kTile>
void conv_sm90(const ImplicitConv& conv, const Target& target) {
  if (conv.dtype == Dtype::bfloat16) {
    sm90::run<cutlass::bfloat16_t, kTile>(conv, target);
  } else {
    sm90::run<cutlass::half_t, kTile>(conv, target);
  }
}

}  // namespace cvk
