// One parallel loop. Work is cut into units whose size does not depend on the number of threads, so results
// do not either.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace cxrl {

constexpr int64_t kSerialWork =
    1 << 15;  // below this many elements starting threads costs more than it saves

template <typename Body>
void parallel_for(int64_t num_units, int64_t work, Body body) {
#if defined(_OPENMP)
  const int threads = omp_get_max_threads();
  if (work >= kSerialWork && threads > 1 && num_units > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t unit = 0; unit < num_units; ++unit) body(unit);
    return;
  }
#else
  (void)work;
#endif
  for (int64_t unit = 0; unit < num_units; ++unit) body(unit);
}

}  // namespace cxrl
