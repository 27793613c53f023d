// Arguments of the norms of the GPU, and how their kernels carry them out.
#pragma once

#include "group_norm_walk.h"
#include "norm_check.h"
#include "rms_norm_walk.h"

namespace cvk {

// y = (x - mean) / sqrt(variance + eps) * weight + bias over groups of channels, all frames and all pixels;
// then y * scale + shift, pixel by pixel; then SiLU. In float32, rounded once to `dtype`.
struct GpuGroupNorm {
  Tensor5 x, out;             // `out` may be `x`
  Modulation modulation;      // repeats are powers of two
  const void *weight, *bias;  // C of each, or null
  Dtype parameters;           // type of both: `dtype` or float32
  int64_t groups;
  double eps;
  bool silu;
  Dtype dtype;  // of all tensors
  float* workspace;
  int64_t workspace_floats;  // at least group_norm_workspace()
};

// n = x / max(sqrt(|x|^2 + C * eps), kLeastPixelNorm) over the channels of a pixel, rounded to `dtype`; y = n
// * sqrt(C) * weight
// + bias; then SiLU. In float32, rounded once more to `dtype`.
struct GpuRmsNorm {
  Tensor5 x, out;             // `out` may be `x`
  const void *weight, *bias;  // C of each, in `dtype`; bias may be null
  double eps;
  bool silu;
  Dtype dtype;
};

// What of a NormKind is chosen at run time.
struct NormChoice {
  Dtype dtype;
  bool across, words;
};

struct GroupNormPlan {
  bool empty;  // nothing to write
  NormChoice sums, writes;
  bool spatial;
  uint32_t groups;  // of all batch entries: blocks of the merge
  GroupNormStatistics statistics;
  GroupNormMerge merge;
  GroupNormWrite write;
};

struct RmsNormPlan {
  bool empty;
  NormChoice choice;
  int kept;  // units of a pixel in registers: 1, 2, 3, 4, 8 across, 4, 8, 16 along; 0 of all others
  RmsNormWalk walk;
};

// How many float32 numbers a group norm of `x` needs room for: 16-byte aligned, nothing in them.
int64_t group_norm_workspace(const Tensor5& x, Dtype dtype);

// These check the arguments, and throw std::invalid_argument.
GroupNormPlan plan_group_norm(const GpuGroupNorm& norm);
RmsNormPlan plan_rms_norm(const GpuRmsNorm& norm);

// Calls `run` with the NormKind that was chosen.
template <class Run>
auto with_kind(const NormChoice& choice, Run&& run) {
  auto of_layout = [&](auto dtype) {
    constexpr Dtype kDtype = decltype(dtype)::value;
    if (choice.across)
      return choice.words ? run(NormKind<kDtype, true, true>{}) : run(NormKind<kDtype, true, false>{});
    return choice.words ? run(NormKind<kDtype, false, true>{}) : run(NormKind<kDtype, false, false>{});
  };
  switch (choice.dtype) {
    case Dtype::bfloat16:
      return of_layout(std::integral_constant<Dtype, Dtype::bfloat16>{});
    case Dtype::float16:
      return of_layout(std::integral_constant<Dtype, Dtype::float16>{});
    default:
      return of_layout(std::integral_constant<Dtype, Dtype::float32>{});
  }
}

template <class Kind, int kKept>
using RmsNormShapeOf = RmsNormShape<Kind, kKept, rms_norm_pixels(Kind::kAcross, kKept)>;

// Calls `run` with the RmsNormShape that was chosen.
template <class Run>
auto with_shape(const RmsNormPlan& plan, Run&& run) {
  return with_kind(plan.choice, [&](auto kind) {
    using Kind = decltype(kind);
    if constexpr (Kind::kWords) {
      if constexpr (Kind::kAcross) {
        if (plan.kept == 1) return run(RmsNormShapeOf<Kind, 1>{});
        if (plan.kept == 2) return run(RmsNormShapeOf<Kind, 2>{});
        if (plan.kept == 3) return run(RmsNormShapeOf<Kind, 3>{});
      } else {
        if (plan.kept == 16) return run(RmsNormShapeOf<Kind, 16>{});
      }
      if (plan.kept == 4) return run(RmsNormShapeOf<Kind, 4>{});
      if (plan.kept == 8) return run(RmsNormShapeOf<Kind, 8>{});
    }
    return run(RmsNormShapeOf<Kind, 0>{});
  });
}

}  // namespace cvk
