// Vectors of the instruction set that this translation unit is compiled for. Included by kernels.cpp only;
// everything is in an anonymous namespace, so no two instruction sets can share a symbol.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(CXRL_WIDTH)
constexpr int kWidth = CXRL_WIDTH;
#elif defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t UVec __attribute__((vector_size(4 * kWidth)));
typedef uint16_t HVec __attribute__((vector_size(2 * kWidth)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec load_partial(const float* p, int64_t n) {
  Vec v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
inline void store_partial(float* p, Vec v, int64_t n) { std::memcpy(p, &v, static_cast<size_t>(n) * 4); }
// Not Vec{} + x, which turns -0 into 0 and so costs an addition.
inline Vec splat(float x) { return x - Vec{}; }

#if defined(__AVX2__)
// Between Vec and the intrinsics' type when they have the same width.
inline __m256 to256(Vec v) {
  __m256 r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
inline Vec from256(__m256 v) {
  Vec r = {};
  std::memcpy(&r, &v, sizeof v);
  return r;
}
#endif

// a * b + c, rounded once where the hardware can. Explicit, with contraction off, so that every kernel
// computes the mean of a step with the same bits: a step that is scored again must give its log-probability
// back.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  static_assert(kWidth == 16, "one AVX-512 register");
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  if constexpr (kWidth == 8) return from256(_mm256_fmadd_ps(to256(a), to256(b), to256(c)));
#endif
  return a * b + c;
}

// The sum of all lanes, halves first: the same order on every call.
inline float sum(Vec v) {
  float lanes[kWidth];
  std::memcpy(lanes, &v, sizeof v);
#if defined(__SSE2__)
  __m128 total = _mm_loadu_ps(lanes);
  for (int i = 4; i < kWidth; i += 4) total = _mm_add_ps(total, _mm_loadu_ps(lanes + i));
  total = _mm_add_ps(total, _mm_movehl_ps(total, total));
  return _mm_cvtss_f32(_mm_add_ss(total, _mm_shuffle_ps(total, total, 1)));
#else
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

// The largest lane.
inline float maximum(Vec v) {
  float lanes[kWidth];
  std::memcpy(lanes, &v, sizeof v);
#if defined(__SSE2__)
  __m128 top = _mm_loadu_ps(lanes);
  for (int i = 4; i < kWidth; i += 4) top = _mm_max_ps(top, _mm_loadu_ps(lanes + i));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_shuffle_ps(top, top, 1)));
#else
  for (int i = 1; i < kWidth; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
#endif
}

// How many lanes of a comparison's result are true.
inline int count_true(IVec mask) {
  int count = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  for (int i = 0; i < kWidth / 8; ++i) {
    __m256 part;
    std::memcpy(&part, reinterpret_cast<const char*>(&mask) + 32 * i, 32);
    count += __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(part)));
  }
#elif defined(__AVX512F__)
  count = __builtin_popcount(_mm512_movepi32_mask((__m512i)mask));
#elif defined(__SSE2__)
  for (int i = 0; i < kWidth / 4; ++i) {
    __m128 part;
    std::memcpy(&part, reinterpret_cast<const char*>(&mask) + 16 * i, 16);
    count += __builtin_popcount(static_cast<unsigned>(_mm_movemask_ps(part)));
  }
#else
  for (int i = 0; i < kWidth; ++i) count -= mask[i];
#endif
  return count;
}

inline Vec select(IVec mask, Vec a, Vec b) { return (Vec)(((IVec)a & mask) | ((IVec)b & ~mask)); }
// Both give b where either is nan, as the instructions do.
inline Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  if constexpr (kWidth == 8) return from256(_mm256_min_ps(to256(a), to256(b)));
#endif
  return select(a < b, a, b);
}
inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  if constexpr (kWidth == 8) return from256(_mm256_max_ps(to256(a), to256(b)));
#endif
  return select(a > b, a, b);
}

// exp(x) by range reduction to [-ln2/2, ln2/2] and a polynomial of degree 6 (relative error < 2e-7, measured
// by the tests through the sigmoid). Below -87.3 the result is the smallest normal number, above 88.3 the
// largest power that fits; nan comes out as nan.
inline Vec exp(Vec x) {
  x = min(splat(88.3f), max(splat(-87.3f), x));
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec shifted = fma(x, splat(1.44269504f), magic);
  Vec n = shifted - magic;
  Vec r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  Vec p = splat(1.38888892e-3f);
  p = fma(p, r, splat(8.33333377e-3f));
  p = fma(p, r, splat(4.16666679e-2f));
  p = fma(p, r, splat(1.66666672e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  IVec exponent = ((IVec)shifted - (IVec)magic) << 23;
  return (Vec)((IVec)p + exponent);
}

// Natural logarithm of positive normal numbers (relative error < 2e-7): x = m · 2^e with m in [√½, √2), and
// with z = (m − 1) / (m + 1), log m = 2 z (1 + z²/3 + z⁴/5 + …).
inline Vec log(Vec x) {
  const IVec bits = (IVec)x - 0x3f3504f3;
  const IVec exponent = bits >> 23;
  const Vec m = (Vec)((bits & 0x007fffff) + 0x3f3504f3);
  const Vec z = (m - splat(1.0f)) / (m + splat(1.0f));
  const Vec square = z * z;
  Vec p = splat(1.0f / 9.0f);
  p = fma(p, square, splat(1.0f / 7.0f));
  p = fma(p, square, splat(1.0f / 5.0f));
  p = fma(p, square, splat(1.0f / 3.0f));
  p = fma(p * square, z, z);
  return fma(__builtin_convertvector(exponent, Vec), splat(0.693147181f), p + p);
}

// 1.8e-35 and not less, for a subnormal result costs a hundred times as much as a normal one.
inline Vec sigmoid(Vec x) { return splat(1.0f) / (splat(1.0f) + exp(min(splat(80.0f), -x))); }

inline Vec widen_bf16(HVec h) { return (Vec)(__builtin_convertvector(h, UVec) << 16); }
inline HVec narrow_bf16(Vec v) {
  UVec bits = (UVec)v;
  UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  UVec quiet = (bits >> 16) | 0x40u;
  UVec nan = (UVec)(v != v);
  return __builtin_convertvector((rounded & ~nan) | (quiet & nan), HVec);
}

#if defined(__F16C__)
inline Vec widen_fp16(HVec h) {
  Vec v;
  for (int i = 0; i < kWidth / 8; ++i) {
    __m128i half;
    std::memcpy(&half, reinterpret_cast<const char*>(&h) + 16 * i, 16);
    __m256 wide = _mm256_cvtph_ps(half);
    std::memcpy(reinterpret_cast<char*>(&v) + 32 * i, &wide, 32);
  }
  return v;
}
inline HVec narrow_fp16(Vec v) {
  HVec h;
  for (int i = 0; i < kWidth / 8; ++i) {
    __m256 wide;
    std::memcpy(&wide, reinterpret_cast<const char*>(&v) + 32 * i, 32);
    __m128i half = _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(reinterpret_cast<char*>(&h) + 16 * i, &half, 16);
  }
  return h;
}
#else
// Without hardware conversion: shift the exponent by multiplying, which also makes subnormals right.
inline Vec widen_fp16(HVec h) {
  UVec bits = __builtin_convertvector(h, UVec);
  UVec magnitude = (bits & 0x7fffu) << 13;
  UVec special = (UVec)((bits & 0x7c00u) == 0x7c00u);
  UVec two_to_112 = UVec{} + 0x77800000u;
  UVec value = (UVec)((Vec)magnitude * (Vec)two_to_112);
  value = (value & ~special) | ((magnitude | 0x7f800000u) & special);
  return (Vec)(value | ((bits & 0x8000u) << 16));
}
inline HVec narrow_fp16(Vec v) {
  UVec bits = (UVec)v;
  UVec sign = (bits >> 16) & 0x8000u;
  UVec magnitude = bits & 0x7fffffffu;
  // Normal results: rebias and round to nearest even in integers; a carry into the exponent is what rounding
  // is.
  UVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: let a float addition align and round the mantissa.
  UVec half_bits = UVec{} + 0x3f000000u;
  UVec subnormal = (UVec)((Vec)magnitude + (Vec)half_bits) - 0x3f000000u;
  UVec small = (UVec)(magnitude < 0x38800000u);
  UVec large = (UVec)(magnitude >= 0x477ff000u);
  UVec nan = (UVec)(magnitude > 0x7f800000u);
  UVec result = (subnormal & small) | (normal & ~small);
  result = (result & ~large) | (0x7c00u & large & ~nan) | (0x7e00u & nan);
  return __builtin_convertvector(result | sign, HVec);
}
#endif

}  // namespace
