#include <string>

#include "../common/check.h"
#include "rms_norm.h"

namespace cvk {

namespace {

// The sums of all threads that share pixels. Across they are lanes of a warp, along rows of the block.
template <class Shape>
__device__ void add_up(const RmsNormWalk& walk, float (&sums)[Shape::kPixels][Shape::kSums]) {
  if constexpr (Shape::Kind::kAcross) {
    for (uint32_t half = (1u << walk.log_lanes) / 2; half > 0; half /= 2) {
      CVK_UNROLL
      for (int p = 0; p < Shape::kPixels; ++p) sums[p][0] += __shfl_xor_sync(0xffffffff, sums[p][0], half);
    }
  } else {
    __shared__ float shared[Shape::kSums * kNormThreads];
    const uint32_t lane = threadIdx.x & ((1u << walk.log_lanes) - 1);
    CVK_UNROLL
    for (int i = 0; i < Shape::kSums; ++i) shared[i * kNormThreads + threadIdx.x] = sums[0][i];
    __syncthreads();
    for (uint32_t half = (kNormThreads >> walk.log_lanes) / 2; half > 0; half /= 2) {
      rms_norm_fold<Shape>(walk, half, threadIdx.x, shared);
      __syncthreads();
    }
    CVK_UNROLL
    for (int i = 0; i < Shape::kSums; ++i) sums[0][i] = shared[i * kNormThreads + lane];
  }
}

template <Dtype kDtype, bool kAcross, bool kWords, int kKept>
__global__ void __launch_bounds__(kNormThreads, 2) rms_norm_kernel(const __grid_constant__ RmsNormWalk walk) {
  using Shape = RmsNormShapeOf<NormKind<kDtype, kAcross, kWords>, kKept>;
  RmsNormItems<Shape> own;
  rms_norm_load<Shape>(walk, blockIdx.x, threadIdx.x, own);
  add_up<Shape>(walk, own.sums);
  rms_norm_write<Shape>(walk, blockIdx.x, threadIdx.x, own);
}

cudaError_t launch(const RmsNormPlan& plan, cudaStream_t stream) {
  void* arguments[] = {const_cast<RmsNormWalk*>(&plan.walk)};
  return with_shape(plan, [&](auto shape) {
    using Shape = decltype(shape);
    using Kind = typename Shape::Kind;
    const auto kernel = rms_norm_kernel<Kind::kDtype, Kind::kAcross, Kind::kWords, Shape::kKept>;
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(plan.walk.blocks), dim3(kNormThreads),
                            arguments, 0, stream);
  });
}

}  // namespace

void rms_norm(const GpuRmsNorm& norm, const Target& target) {
  const RmsNormPlan plan = plan_rms_norm(norm);
  if (plan.empty) return;
  const std::string shapes = "x " + sizes_text(norm.x.size, 5);
  const OnDevice here(target.device, "rms_norm", shapes);
  check_cuda(launch(plan, target.stream), "rms_norm", shapes);
}

}  // namespace cvk
