#include <string>

#include "../common/check.h"
#include "causal_pad3d.h"
#include "host/pad_plan.h"

namespace cvk {

namespace {

template <class Item>
__global__ void __launch_bounds__(kPadThreads) pad_items_kernel(const __grid_constant__ PadWalk walk) {
  pad_items<Item>(walk, blockIdx.x, threadIdx.x);
}

template <class Item>
__global__ void __launch_bounds__(kPadThreads)
    pad_tiles_kernel(const __grid_constant__ PadWalk walk, const __grid_constant__ PadTiles tiles) {
  __shared__ Item tile[PadTile<Item>::kItems];
  pad_tile_load<Item>(walk, tiles, blockIdx.x, threadIdx.x, tile);
  __syncthreads();
  pad_tile_store<Item>(walk, tiles, blockIdx.x, threadIdx.x, tile);
}

template <class Item>
cudaError_t launch(const PadPlan& plan, cudaStream_t stream) {
  const dim3 blocks(plan.transposes ? plan.tiles.blocks : plan.walk.blocks), threads(kPadThreads);
  void* arguments[] = {const_cast<PadWalk*>(&plan.walk), const_cast<PadTiles*>(&plan.tiles)};
  const void* kernel = reinterpret_cast<const void*>(pad_items_kernel<Item>);
  if constexpr (sizeof(Item) <= 8) {
    if (plan.transposes) kernel = reinterpret_cast<const void*>(pad_tiles_kernel<Item>);
  }
  return cudaLaunchKernel(kernel, blocks, threads, arguments, 0, stream);
}

cudaError_t launch(const PadPlan& plan, cudaStream_t stream) {
  switch (plan.item_bytes) {
    case 1:
      return launch<uint8_t>(plan, stream);
    case 2:
      return launch<uint16_t>(plan, stream);
    case 4:
      return launch<uint32_t>(plan, stream);
    case 8:
      return launch<uint64_t>(plan, stream);
    default:
      return launch<Bits128>(plan, stream);
  }
}

}  // namespace

void causal_pad3d(const CausalPad3d& pad, const Target& target) {
  const PadPlan plan = plan_pad(pad);
  if ((plan.transposes ? plan.tiles.blocks : plan.walk.blocks) == 0) return;
  const std::string what = pad.body_is_in_out ? "causal_pad3d_" : "causal_pad3d";
  const std::string shapes = "x " + sizes_text(pad.x.size, 5) + ", out " + sizes_text(pad.out.size, 5) +
                             ", " + std::to_string(plan.item_bytes) + "-byte " +
                             (plan.transposes ? "tiles" : "items");
  const OnDevice here(target.device, what, shapes);
  check_cuda(launch(plan, target.stream), what, shapes);
}

}  // namespace cvk
