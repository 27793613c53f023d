// Static split of a range over threads. Never included by an instruction-set unit.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cvk {

// Calls body(begin, end, thread) once per thread with its share of [0, count); `body` must not throw.
// The shares depend on what the runtime grants, so a body must give the same bits for any split.
template <class Body>
void parallel_for(int64_t count, int num_threads, const Body& body) {
  int threads = static_cast<int>(std::min<int64_t>(count, num_threads));
  if (threads <= 1) {
    if (count > 0) body(int64_t{0}, count, 0);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    int64_t team = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t share = count / team, rest = count % team;
    int64_t begin = thread * share + std::min(thread, rest);
    body(begin, begin + share + (thread < rest ? 1 : 0), static_cast<int>(thread));
  }
#else
  body(int64_t{0}, count, 0);
#endif
}

}  // namespace cvk
