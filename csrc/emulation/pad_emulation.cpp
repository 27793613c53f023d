#include "pad_emulation.h"

#include <vector>

#include "../cuda/host/pad_plan.h"

namespace cvk {

namespace {

template <class Item>
int64_t run_items(const PadWalk& walk) {
  int64_t written = 0;
  for (uint32_t block = 0; block < walk.blocks; ++block)
    for (int thread = 0; thread < kPadThreads; ++thread) written += pad_items<Item>(walk, block, thread);
  return written;
}

template <class Item>
int64_t run_tiles(const PadWalk& walk, const PadTiles& tiles) {
  int64_t written = 0;
  std::vector<Item> tile(PadTile<Item>::kItems);
  for (uint32_t block = 0; block < tiles.blocks; ++block) {
    for (int thread = 0; thread < kPadThreads; ++thread)
      pad_tile_load<Item>(walk, tiles, block, thread, tile.data());
    for (int thread = 0; thread < kPadThreads; ++thread)
      written += pad_tile_store<Item>(walk, tiles, block, thread, tile.data());
  }
  return written;
}

template <class Item>
int64_t run(const PadPlan& plan) {
  return plan.transposes ? run_tiles<Item>(plan.walk, plan.tiles) : run_items<Item>(plan.walk);
}

}  // namespace

PadEmulation emulate_pad(const CausalPad3d& pad) {
  const PadPlan plan = plan_pad(pad);
  PadEmulation result{plan.transposes, plan.item_bytes,
                      plan.transposes ? plan.tiles.blocks : plan.walk.blocks, 0};
  switch (plan.item_bytes) {
    case 0:  // nothing to write
      break;
    case 1:
      result.written = run<uint8_t>(plan);
      break;
    case 2:
      result.written = run<uint16_t>(plan);
      break;
    case 4:
      result.written = run<uint32_t>(plan);
      break;
    case 8:
      result.written = run<uint64_t>(plan);
      break;
    default:
      result.written = run_items<Bits128>(plan.walk);
  }
  return result;
}

}  // namespace cvk
