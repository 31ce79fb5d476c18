// Picks the table of inner loops once, by what the processor has.
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace cxrl {

extern const Kernels kernels_baseline;
#if defined(CXRL_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

#if defined(CXRL_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Kernels* best() {
#if defined(CXRL_X86)
  if (has_avx512()) return &kernels_avx512;
  if (has_avx2()) return &kernels_avx2;
#endif
  return &kernels_baseline;
}

const Kernels*& current() {
  static const Kernels* table = best();
  return table;
}

}  // namespace

const Kernels& kernels() { return *current(); }
const char* isa_name() { return current()->name; }

void set_isa(const char* name) {
  const std::string wanted(name);
  if (wanted == "auto") {
    current() = best();
  } else if (wanted == "baseline") {
    current() = &kernels_baseline;
#if defined(CXRL_X86)
  } else if (wanted == "avx2" && has_avx2()) {
    current() = &kernels_avx2;
  } else if (wanted == "avx512" && has_avx512()) {
    current() = &kernels_avx512;
#endif
  } else {
    throw std::invalid_argument("instruction set '" + wanted +
                                "' is not built or not supported by this processor");
  }
}

}  // namespace cxrl
