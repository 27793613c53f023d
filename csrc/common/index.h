// Index arithmetic of causal padding, shared by host and device: which source frame, which source pixel.
//
// Everything here is `static`: instruction-set units include this header, and with internal linkage the
// linker cannot hand code compiled for a wide instruction set to a caller that must run everywhere.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define CVK_HD __host__ __device__
#else
#define CVK_HD
#endif

namespace cvk {

enum class TemporalMode : int { replicate, zeros, valid };
enum class SpatialMode : int { zeros, replicate, reflect, valid };

enum class FrameOrigin : int { body, state, zero };

struct SourceFrame {
  FrameOrigin origin;
  int64_t index;  // in the body or in the state
};

// The padded sequence is `padding` past frames, then the body. A state, where given, is those past frames.
CVK_HD static constexpr inline SourceFrame source_frame(int64_t t, int64_t padding, bool has_state,
                                                        TemporalMode mode) {
  if (t >= padding) return {FrameOrigin::body, t - padding};
  if (has_state) return {FrameOrigin::state, t};
  if (mode == TemporalMode::replicate) return {FrameOrigin::body, 0};
  return {FrameOrigin::zero, 0};
}

// The pixel shown at coordinate `i`, which may lie outside [0, size); -1 where the value is zero.
// "reflect" bounces once, so that it needs a padding smaller than `size`.
CVK_HD static constexpr inline int64_t source_pixel(int64_t i, int64_t size, SpatialMode mode) {
  if (i >= 0 && i < size) return i;
  if (mode == SpatialMode::replicate) return i < 0 ? 0 : size - 1;
  if (mode == SpatialMode::reflect) return i < 0 ? -i : 2 * (size - 1) - i;
  return -1;
}

// How many outputs a window of `kernel` taps, `dilation` apart, has over `padded` inputs; 0 if none fits.
CVK_HD static constexpr inline int64_t output_size(int64_t padded, int64_t kernel, int64_t stride,
                                                   int64_t dilation) {
  int64_t room = padded - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

}  // namespace cvk
