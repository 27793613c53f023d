#include <string>

#include "../common/check.h"
#include "group_norm.h"

namespace cvk {

namespace {

template <Dtype kDtype, bool kAcross, bool kWords>
__global__ void __launch_bounds__(kNormThreads, 2)
    group_statistics_kernel(const __grid_constant__ GroupNormStatistics walk) {
  using Kind = NormKind<kDtype, kAcross, kWords>;
  __shared__ MomentsTable<Kind> table;
  statistics_sum<Kind>(walk, blockIdx.x, threadIdx.x, table);
  __syncthreads();
  for (uint32_t half = first_fold(statistics_sharers<Kind>(walk.grid)); half > 0; half /= 2) {
    statistics_fold<Kind>(walk, half, threadIdx.x, table);
    __syncthreads();
  }
  statistics_write<Kind>(walk, blockIdx.x, threadIdx.x, table);
}

// The sum of a value of every thread; the same bits in all of them.
__device__ float sum_of(float value, float* values) {
  __syncthreads();  // the last sum has been read
  values[threadIdx.x] = value;
  __syncthreads();
  for (uint32_t half = kNormThreads / 2; half > 0; half /= 2) {
    sum_fold(values, half, threadIdx.x);
    __syncthreads();
  }
  return values[0];
}

__global__ void __launch_bounds__(kNormThreads)
    group_merge_kernel(const __grid_constant__ GroupNormMerge walk) {
  __shared__ float values[kNormThreads];
  const float mean = sum_of(merge_sum(walk, blockIdx.x, threadIdx.x), values) / walk.elements;
  float left, squares;
  merge_spread(walk, blockIdx.x, threadIdx.x, mean, left, squares);
  left = sum_of(left, values);
  squares = sum_of(squares, values);
  merge_write(walk, blockIdx.x, threadIdx.x, mean, left, squares);
}

template <Dtype kDtype, bool kAcross, bool kWords, bool kSpatial>
__global__ void __launch_bounds__(kNormThreads, 2)
    group_write_kernel(const __grid_constant__ GroupNormWrite walk) {
  write_items<NormKind<kDtype, kAcross, kWords>, kSpatial>(walk, blockIdx.x, threadIdx.x);
}

template <class Walk>
cudaError_t launch(void (*kernel)(Walk), const Walk& walk, uint32_t blocks, cudaStream_t stream) {
  void* arguments[] = {const_cast<Walk*>(&walk)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kNormThreads), arguments,
                          0, stream);
}

cudaError_t launch_statistics(const GroupNormPlan& plan, cudaStream_t stream) {
  return with_kind(plan.sums, [&](auto kind) {
    using Kind = decltype(kind);
    return launch(group_statistics_kernel<Kind::kDtype, Kind::kAcross, Kind::kWords>, plan.statistics,
                  plan.statistics.grid.blocks, stream);
  });
}

template <bool kSpatial>
cudaError_t launch_write(const GroupNormPlan& plan, cudaStream_t stream) {
  return with_kind(plan.writes, [&](auto kind) {
    using Kind = decltype(kind);
    return launch(group_write_kernel<Kind::kDtype, Kind::kAcross, Kind::kWords, kSpatial>, plan.write,
                  plan.write.grid.blocks, stream);
  });
}

}  // namespace

void group_norm(const GpuGroupNorm& norm, const Target& target) {
  const GroupNormPlan plan = plan_group_norm(norm);
  if (plan.empty) return;
  const std::string shapes =
      "x " + sizes_text(norm.x.size, 5) + ", " + std::to_string(norm.groups) + " groups";
  const std::string what = plan.spatial ? "spatial_norm" : "group_norm";
  const OnDevice here(target.device, what, shapes);
  check_cuda(launch_statistics(plan, target.stream), what + ", statistics", shapes);
  check_cuda(launch(group_merge_kernel, plan.merge, plan.groups, target.stream), what + ", merge", shapes);
  check_cuda(
      plan.spatial ? launch_write<true>(plan, target.stream) : launch_write<false>(plan, target.stream),
      what + ", the pass that writes", shapes);
}

}  // namespace cvk
