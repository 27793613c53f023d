// A range shared among threads. Never included by an instruction-set unit.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cvk {

// What is left of one thread's share of a range.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// Pieces of a share: what a thread holds when it loses its core keeps the others waiting.
constexpr int64_t kPiecesOfAShare = 16;

// Calls body(begin, end, thread) until all of [0, count) is done; `body` must not throw. Each thread works on
// its own share, in pieces, and then on what others have left of theirs: one that shares its core with
// another process delays nobody for long. Nobody knows which thread does which piece, so a body must give
// the same bits for any split.
template <class Body>
void parallel_for(int64_t count, int num_threads, const Body& body) {
  int threads = static_cast<int>(std::min<int64_t>(count, num_threads));
  if (threads <= 1) {
    if (count > 0) body(int64_t{0}, count, 0);
    return;
  }
#ifdef _OPENMP
  std::vector<Share> shares(threads);
  for (int64_t i = 0; i < threads; ++i) {
    shares[i].next.store(i * count / threads, std::memory_order_relaxed);
    shares[i].end = (i + 1) * count / threads;
  }
  const int64_t piece = std::max(count / threads / kPiecesOfAShare, int64_t{1});
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    for (int i = 0; i < threads; ++i) {  // of all shares, even if fewer threads came
      Share& share = shares[(thread + i) % threads];
      for (;;) {
        const int64_t begin = share.next.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= share.end) break;
        body(begin, std::min(begin + piece, share.end), thread);
      }
    }
  }
#else
  body(int64_t{0}, count, 0);
#endif
}

}  // namespace cvk
