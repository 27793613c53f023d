// Index arithmetic of causal padding and convolution, shared by host and device: which source frame, which
// source pixel, which taps of a kernel.
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

// What a convolution reads of time: `zeros` frames of zeros, `copied` frames that are written, the input. Tap
// k (of `count`) sees at output z frame z * stride + k * step of all these.
struct TimeTaps {
  int64_t first, count;  // the kernel's taps first to first + count, or the two below
  int64_t step;          // frames from a tap to the next
  int64_t zeros;         // frames of zeros in front of the input: nobody writes them
  int64_t copied;        // frames in front of it that are written: the state, or the first frame again
  bool summed;           // the taps are the sum of all the kernel's taps, in two parts: high and low
};

// `frames` of input, at least one; `kernel` taps, `dilation` apart.
//
// Zeros: taps that see nothing else at any output are left out, so that of a single frame the last tap is all
// that is computed. Replicate: all taps see a single frame, and their sum does what they do. Rounded to the
// type it would lose digits: 1.4 times the error of the convolution on random numbers, and any multiple where
// the taps cancel. So the sum comes in two parts, high and low, with twice the digits: two taps that both see
// the frame, two thirds of the work of three.
CVK_HD static constexpr inline TimeTaps time_taps(int64_t frames, int64_t kernel, int64_t dilation,
                                                  int64_t stride, bool has_state, TemporalMode mode) {
  const int64_t past = dilation * (kernel - 1);
  if (mode == TemporalMode::valid || past == 0) return {0, kernel, dilation, 0, 0, false};
  if (has_state) return {0, kernel, dilation, 0, past, false};
  if (mode == TemporalMode::replicate) {
    if (frames == 1) return {0, 2, 1, 0, 1, kernel > 2};
    return {0, kernel, dilation, 0, past, false};
  }
  const int64_t last = (frames - 1) / stride * stride;  // the last output's own frame
  const int64_t first = past > last ? (past - last + dilation - 1) / dilation : 0;
  return {first, kernel - first, dilation, past - first * dilation, 0, false};
}

// The frame that tap k of `taps` sees at output z.
CVK_HD static constexpr inline SourceFrame frame_of_tap(int64_t z, int64_t k, int64_t stride,
                                                        const TimeTaps& taps, bool has_state,
                                                        TemporalMode mode) {
  const int64_t padded = z * stride + k * taps.step - taps.zeros;  // counted from the first copied frame
  if (padded < 0) return {FrameOrigin::zero, 0};
  return source_frame(padded, taps.copied, has_state, mode);
}

// Outputs [first, first + count) of a convolution over time as a convolution of their own: its input is
// `frames` frames from `source` on, behind `zeros` frames of zeros.
struct TimePiece {
  int64_t source, frames, zeros;
};

CVK_HD static constexpr inline TimePiece time_piece(int64_t first, int64_t count, int64_t frames,
                                                    int64_t kernel, int64_t step, int64_t stride,
                                                    int64_t zeros) {
  const int64_t begin = first * stride - zeros;
  const int64_t end = (first + count - 1) * stride - zeros + (kernel - 1) * step + 1;
  const int64_t source = begin < 0 ? 0 : begin;
  return {source, (end < frames ? end : frames) - source, source - begin};
}

}  // namespace cvk
