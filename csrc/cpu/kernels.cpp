// Compiled once for every instruction set, with CXRL_ISA naming it (see CMakeLists.txt).
#include "kernels.h"

#include "simd.h"

// The loops, which are built from simd.h.
#include "attention_kernel.h"
#include "pairwise_comparison_kernel.h"
#include "trajectory_log_prob_kernel.h"

namespace {

template <Vec (*kWiden)(HVec)>
void load_half(const char* src, int64_t stride, int64_t n, float* dst) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(src);
  for (int64_t i = 0; i < n; i += kWidth) {
    int64_t count = n - i < kWidth ? n - i : kWidth;
    HVec h = {};
    if (stride == 1) {
      std::memcpy(&h, half + i, static_cast<size_t>(count) * 2);
    } else {
      for (int64_t j = 0; j < count; ++j) h[j] = half[(i + j) * stride];
    }
    store_partial(dst + i, kWiden(h), count);
  }
}

template <HVec (*kNarrow)(Vec)>
void store_half(const float* src, int64_t n, char* dst, int64_t stride) {
  uint16_t* half = reinterpret_cast<uint16_t*>(dst);
  for (int64_t i = 0; i < n; i += kWidth) {
    int64_t count = n - i < kWidth ? n - i : kWidth;
    HVec h = kNarrow(load_partial(src + i, count));
    if (stride == 1) {
      std::memcpy(half + i, &h, static_cast<size_t>(count) * 2);
    } else {
      for (int64_t j = 0; j < count; ++j) half[(i + j) * stride] = h[j];
    }
  }
}

void load_elements(const char* src, cxrl::DType dtype, int64_t stride, int64_t n, float* dst) {
  if (dtype == cxrl::DType::kFloat16) return load_half<widen_fp16>(src, stride, n, dst);
  if (dtype == cxrl::DType::kBFloat16) return load_half<widen_bf16>(src, stride, n, dst);
  const float* value = reinterpret_cast<const float*>(src);
  if (stride == 1) {
    std::memcpy(dst, value, static_cast<size_t>(n) * 4);
    return;
  }
  for (int64_t i = 0; i < n; ++i) dst[i] = value[i * stride];
}

void store_elements(const float* src, int64_t n, char* dst, cxrl::DType dtype, int64_t stride) {
  if (dtype == cxrl::DType::kFloat16) return store_half<narrow_fp16>(src, n, dst, stride);
  if (dtype == cxrl::DType::kBFloat16) return store_half<narrow_bf16>(src, n, dst, stride);
  float* value = reinterpret_cast<float*>(dst);
  if (stride == 1) {
    std::memcpy(value, src, static_cast<size_t>(n) * 4);
    return;
  }
  for (int64_t i = 0; i < n; ++i) value[i * stride] = src[i];
}

// Exponent all ones means inf or nan: integers, so that no floating-point option can fold the test away.
inline IVec not_finite(Vec v) { return ((IVec)v & 0x7f800000) == 0x7f800000; }

int64_t find_nonfinite(const float* src, int64_t n) {
  constexpr int64_t kBlock = 16 * kWidth;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    IVec bad = {};
    for (int64_t j = 0; j < kBlock; j += kWidth) bad |= not_finite(load(src + i + j));
    if (count_true(bad)) break;
  }
  for (; i < n; ++i) {
    if (not_finite(splat(src[i]))[0]) return i;
  }
  return -1;
}

}  // namespace

#define CXRL_NAME_(isa) kernels_##isa
#define CXRL_NAME(isa) CXRL_NAME_(isa)
#define CXRL_TEXT_(isa) #isa
#define CXRL_TEXT(isa) CXRL_TEXT_(isa)

namespace cxrl {

extern const Kernels CXRL_NAME(CXRL_ISA);
const Kernels CXRL_NAME(CXRL_ISA) = {
    CXRL_TEXT(CXRL_ISA), kWidth,  load_elements, store_elements,   find_nonfinite,    log_prob_tile, step_tile,
    grad_tile,           compare, product,       softmax_rows,     probability_rows,  softmax_grad_rows,
    transpose,
};

}  // namespace cxrl
