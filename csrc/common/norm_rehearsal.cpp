#include "norm_rehearsal.h"

#include <memory>
#include <vector>

namespace cvk {

namespace {

// Threads between two barriers.
template <class Step>
void all_threads(Step&& step) {
  for (uint32_t thread = 0; thread < kNormThreads; ++thread) step(thread);
}

void run_statistics(const GroupNormPlan& plan) {
  const GroupNormStatistics& walk = plan.statistics;
  with_kind(plan.sums, [&](auto kind) {
    using Kind = decltype(kind);
    const auto table = std::make_unique<MomentsTable<Kind>>();
    for (uint32_t block = 0; block < walk.grid.blocks; ++block) {
      all_threads([&](uint32_t thread) { statistics_sum<Kind>(walk, block, thread, *table); });
      for (uint32_t half = first_fold(statistics_sharers<Kind>(walk.grid)); half > 0; half /= 2)
        all_threads([&](uint32_t thread) { statistics_fold<Kind>(walk, half, thread, *table); });
      all_threads([&](uint32_t thread) { statistics_write<Kind>(walk, block, thread, *table); });
    }
  });
}

float sum_of(std::vector<float>& values) {
  for (uint32_t half = kNormThreads / 2; half > 0; half /= 2)
    all_threads([&](uint32_t thread) { sum_fold(values.data(), half, thread); });
  return values[0];
}

void run_merge(const GroupNormPlan& plan) {
  const GroupNormMerge& walk = plan.merge;
  std::vector<float> sums(kNormThreads), squares(kNormThreads);
  for (uint32_t block = 0; block < plan.groups; ++block) {
    all_threads([&](uint32_t thread) { sums[thread] = merge_sum(walk, block, thread); });
    const float mean = sum_of(sums) / walk.elements;
    all_threads(
        [&](uint32_t thread) { merge_spread(walk, block, thread, mean, sums[thread], squares[thread]); });
    const float left = sum_of(sums), spread = sum_of(squares);
    all_threads([&](uint32_t thread) { merge_write(walk, block, thread, mean, left, spread); });
  }
}

template <bool kSpatial>
int64_t run_write(const GroupNormPlan& plan) {
  return with_kind(plan.writes, [&](auto kind) {
    using Kind = decltype(kind);
    int64_t written = 0;
    for (uint32_t block = 0; block < plan.write.grid.blocks; ++block)
      all_threads(
          [&](uint32_t thread) { written += write_items<Kind, kSpatial>(plan.write, block, thread); });
    return written;
  });
}

template <class Shape>
void add_up(const RmsNormWalk& walk, std::vector<RmsNormItems<Shape>>& threads) {
  if constexpr (Shape::Kind::kAcross) {
    for (uint32_t half = (1u << walk.log_lanes) / 2; half > 0; half /= 2) {
      const std::vector<RmsNormItems<Shape>> before = threads;
      all_threads([&](uint32_t thread) {
        for (int p = 0; p < Shape::kPixels; ++p)
          threads[thread].sums[p][0] += before[thread ^ half].sums[p][0];
      });
    }
  } else {
    std::vector<float> sums(Shape::kSums * kNormThreads);
    auto row_of_sums = [&](uint32_t thread, int i) -> float& { return sums[i * kNormThreads + thread]; };
    all_threads([&](uint32_t thread) {
      for (int i = 0; i < Shape::kSums; ++i) row_of_sums(thread, i) = threads[thread].sums[0][i];
    });
    for (uint32_t half = (kNormThreads >> walk.log_lanes) / 2; half > 0; half /= 2)
      all_threads([&](uint32_t thread) { rms_norm_fold<Shape>(walk, half, thread, sums.data()); });
    all_threads([&](uint32_t thread) {
      const uint32_t lane = thread & ((1u << walk.log_lanes) - 1);
      for (int i = 0; i < Shape::kSums; ++i) threads[thread].sums[0][i] = row_of_sums(lane, i);
    });
  }
}

}  // namespace

NormRehearsal rehearse_group_norm(const GpuGroupNorm& norm) {
  const GroupNormPlan plan = plan_group_norm(norm);
  if (plan.empty) return {};
  run_statistics(plan);
  run_merge(plan);
  const int64_t blocks = int64_t{plan.statistics.grid.blocks} + plan.groups + plan.write.grid.blocks;
  const int64_t written = plan.spatial ? run_write<true>(plan) : run_write<false>(plan);
  return {plan.sums.words, plan.writes.words, blocks, written};
}

NormRehearsal rehearse_rms_norm(const GpuRmsNorm& norm) {
  const RmsNormPlan plan = plan_rms_norm(norm);
  if (plan.empty) return {};
  const RmsNormWalk& walk = plan.walk;
  const int64_t written = with_shape(plan, [&](auto shape) {
    using Shape = decltype(shape);
    int64_t written = 0;
    std::vector<RmsNormItems<Shape>> threads(kNormThreads);
    for (uint32_t block = 0; block < walk.blocks; ++block) {
      all_threads([&](uint32_t thread) { rms_norm_load<Shape>(walk, block, thread, threads[thread]); });
      add_up<Shape>(walk, threads);
      all_threads(
          [&](uint32_t thread) { written += rms_norm_write<Shape>(walk, block, thread, threads[thread]); });
    }
    return written;
  });
  return {plan.choice.words, plan.choice.words, walk.blocks, written};
}

}  // namespace cvk
