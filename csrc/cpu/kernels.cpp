// Compiled once for every instruction set, with CXRL_ISA naming it (see CMakeLists.txt).
#include "kernels.h"

#include "simd.h"

// The loops, which are built from simd.h.
#include "attention_kernel.h"
#include "pairwise_comparison_kernel.h"
#include "trajectory_log_prob_kernel.h"

namespace {

// Copies n elements that are kStride apart in `src` (0: `stride` apart) to dense ones, or back.
template <int kStride, typename T>
void gather(const T* src, int64_t stride, int64_t n, T* dst) {
  const int64_t step = kStride ? kStride : stride;
  for (int64_t i = 0; i < n; ++i) dst[i] = src[i * step];
}
template <int kStride, typename T>
void scatter(const T* src, int64_t n, T* dst, int64_t stride) {
  const int64_t step = kStride ? kStride : stride;
  for (int64_t i = 0; i < n; ++i) dst[i * step] = src[i];
}

// A latent has 4 channels: a stride that the compiler knows is one it can shuffle.
template <typename T>
void gather_any(const T* src, int64_t stride, int64_t n, T* dst) {
  if (stride == 4) return gather<4>(src, stride, n, dst);
  gather<0>(src, stride, n, dst);
}
template <typename T>
void scatter_any(const T* src, int64_t n, T* dst, int64_t stride) {
  if (stride == 4) return scatter<4>(src, n, dst, stride);
  scatter<0>(src, n, dst, stride);
}

constexpr int64_t kPiece = 256;

template <Vec (*kWiden)(HVec)>
void load_half(const uint16_t* src, int64_t stride, int64_t n, float* dst) {
  uint16_t piece[kPiece];
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = n - begin < kPiece ? n - begin : kPiece;
    const uint16_t* half = src + begin;
    if (stride != 1) {
      gather_any(src + begin * stride, stride, count, piece);
      half = piece;
    }
    int64_t i = 0;
    HVec h = {};
    for (; i + kWidth <= count; i += kWidth) {
      std::memcpy(&h, half + i, sizeof h);
      store(dst + begin + i, kWiden(h));
    }
    if (i == count) continue;
    h = HVec{};
    std::memcpy(&h, half + i, static_cast<size_t>(count - i) * 2);
    store_partial(dst + begin + i, kWiden(h), count - i);
  }
}

template <HVec (*kNarrow)(Vec)>
void store_half(const float* src, int64_t n, uint16_t* dst, int64_t stride) {
  uint16_t piece[kPiece];
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = n - begin < kPiece ? n - begin : kPiece;
    uint16_t* half = stride == 1 ? dst + begin : piece;
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      const HVec h = kNarrow(load(src + begin + i));
      std::memcpy(half + i, &h, sizeof h);
    }
    if (i < count) {
      const HVec h = kNarrow(load_partial(src + begin + i, count - i));
      std::memcpy(half + i, &h, static_cast<size_t>(count - i) * 2);
    }
    if (stride != 1) scatter_any(piece, count, dst + begin * stride, stride);
  }
}

void load_elements(const char* src, cxrl::DType dtype, int64_t stride, int64_t n, float* dst) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(src);
  if (dtype == cxrl::DType::kFloat16) return load_half<widen_fp16>(half, stride, n, dst);
  if (dtype == cxrl::DType::kBFloat16) return load_half<widen_bf16>(half, stride, n, dst);
  const float* value = reinterpret_cast<const float*>(src);
  if (stride != 1) return gather_any(value, stride, n, dst);
  std::memcpy(dst, value, static_cast<size_t>(n) * 4);
}

void store_elements(const float* src, int64_t n, char* dst, cxrl::DType dtype, int64_t stride) {
  uint16_t* half = reinterpret_cast<uint16_t*>(dst);
  if (dtype == cxrl::DType::kFloat16) return store_half<narrow_fp16>(src, n, half, stride);
  if (dtype == cxrl::DType::kBFloat16) return store_half<narrow_bf16>(src, n, half, stride);
  float* value = reinterpret_cast<float*>(dst);
  if (stride != 1) return scatter_any(src, n, value, stride);
  std::memcpy(value, src, static_cast<size_t>(n) * 4);
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
    CXRL_TEXT(CXRL_ISA), kWidth,           load_elements,     store_elements, find_nonfinite,
    log_prob_tile,       step_tile,        grad_tile,         compare,        product,
    softmax_rows,        probability_rows, softmax_grad_rows, transpose,
};

}  // namespace cxrl
