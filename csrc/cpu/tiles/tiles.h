// Eight matrix tiles: Intel AMX, or a stand-in that computes the same in memory. For the units of this folder
// only, which are compiled with and without the instructions.
//
// Tile 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights; each has 16 rows of 64 bytes.
#pragma once

#include <cstdint>
#include <cstring>

namespace cvk {
namespace {

#ifdef __AMX_BF16__

// The compiler's own functions do not tell it that they read and write memory (GCC 12), so these are ours.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape) : "memory");
  }
  ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  inline void load(const void* rows, int64_t step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(step), "i"(kTile) : "memory");
  }
  template <int kTile>
  inline void store(void* rows, int64_t step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(step), "i"(kTile) : "memory");
  }
  // Tile kSums += tile kPixels * tile kWeights.
  template <int kSums, int kPixels, int kWeights>
  inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kPixels), "i"(kWeights));
  }
};

#else

class Tiles {
 public:
  template <int kTile>
  void zero() {
    std::memset(tile_[kTile], 0, sizeof tile_[kTile]);
  }
  template <int kTile>
  void load(const void* rows, int64_t step) {
    for (int r = 0; r < 16; ++r) std::memcpy(tile_[kTile][r], static_cast<const char*>(rows) + r * step, 64);
  }
  template <int kTile>
  void store(void* rows, int64_t step) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(rows) + r * step, tile_[kTile][r], 64);
  }
  template <int kSums, int kPixels, int kWeights>
  void multiply() {
    for (int m = 0; m < 16; ++m) {
      float sums[16];
      std::memcpy(sums, tile_[kSums][m], 64);
      for (int k = 0; k < 32; ++k) {
        const float pixel = element(kPixels, m, k);
        for (int n = 0; n < 16; ++n) sums[n] += pixel * element(kWeights, k / 2, 2 * n + k % 2);
      }
      std::memcpy(tile_[kSums][m], sums, 64);
    }
  }

 private:
  float element(int tile, int row, int index) const {  // a bfloat16 is the upper half of a float
    uint16_t half;
    std::memcpy(&half, tile_[tile][row] + 2 * index, 2);
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  unsigned char tile_[8][16][64];
};

#endif

}  // namespace
}  // namespace cvk
