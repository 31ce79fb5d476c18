// Inner loops of attention: a small matrix product and the row-wise softmax, forward and backward. Included by
// kernels.cpp only.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

// c[kRows, kVecs * width] (+)= a[kRows, depth] · b[depth, kVecs * width], all of c in registers.
template <int kRows, int kVecs>
inline void product_block(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_row, float* c,
                          int64_t c_row, int64_t depth, bool accumulate) {
  Vec total[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) total[i][j] = accumulate ? load(c + i * c_row + j * kWidth) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec left = splat(a[i * a_row + k * a_col]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) total[i][j] = fma(left, right[j], total[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(c + i * c_row + j * kWidth, total[i][j]);
  }
}

template <int kVecs>
inline void product_panel(const cxrl::Product& p, int64_t column) {
  const float* b = p.b + column;
  int64_t i = 0;
  auto block = [&](auto rows) {
    product_block<decltype(rows)::value, kVecs>(p.a + i * p.a_row, p.a_row, p.a_col, b, p.b_row,
                                                p.c + i * p.c_row + column, p.c_row, p.depth, p.accumulate);
    i += decltype(rows)::value;
  };
  while (p.rows - i >= 6) block(std::integral_constant<int, 6>{});
  if (p.rows - i >= 4) block(std::integral_constant<int, 4>{});
  if (p.rows - i >= 2) block(std::integral_constant<int, 2>{});
  if (p.rows - i >= 1) block(std::integral_constant<int, 1>{});
}

void product(const cxrl::Product& p) {
  // 6 rows by 2 vectors fill the 16 registers of AVX2, by 4 the 32 of AVX-512.
  constexpr int kVecs = kWidth == 16 ? 4 : 2;
  int64_t column = 0;
  for (; column + kVecs * kWidth <= p.columns; column += kVecs * kWidth) product_panel<kVecs>(p, column);
  if constexpr (kVecs == 4) {
    if (column + 2 * kWidth <= p.columns) product_panel<2>(p, column), column += 2 * kWidth;
  }
  if (column < p.columns) product_panel<1>(p, column);
}

inline float maximum(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  float result = lanes[0];
  for (int i = 1; i < kWidth; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}

// Lanes at or past `valid`, counted from this vector's start, become `filler`.
inline Vec keep_valid(Vec v, int64_t valid, float filler) {
  if (valid >= kWidth) return v;
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t i = valid > 0 ? valid : 0; i < kWidth; ++i) lanes[i] = filler;
  return load(lanes);
}

void softmax_rows(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                  float* log_sum_exp) {
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * row_stride;
    Vec largest = splat(-3.0e38f);
    for (int64_t j = 0; j < columns; j += kWidth) {
      const Vec scaled = keep_valid(load(s + j) * splat(scale), columns - j, -3.0e38f);
      store(s + j, scaled);
      largest = max(largest, scaled);
    }
    const float top = maximum(largest);
    Vec total = {};
    for (int64_t j = 0; j < columns; j += kWidth) {
      const Vec e = keep_valid(exp(load(s + j) - splat(top)), columns - j, 0.0f);
      store(s + j, e);
      total += e;
    }
    const float denominator = sum(total);
    const Vec inverse = splat(1.0f / denominator);
    for (int64_t j = 0; j < columns; j += kWidth) store(s + j, load(s + j) * inverse);
    log_sum_exp[r] = top + __builtin_logf(denominator);
  }
}

void probability_rows(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                      const float* log_sum_exp) {
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * row_stride;
    const Vec offset = splat(-log_sum_exp[r]);
    for (int64_t j = 0; j < columns; j += kWidth)
      store(s + j, keep_valid(exp(fma(load(s + j), splat(scale), offset)), columns - j, 0.0f));
  }
}

// grad holds d loss / d probability and becomes d loss / d (q · k).
void softmax_grad_rows(const float* probability, float* grad, int64_t rows, int64_t columns, int64_t row_stride,
                       float scale) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* p = probability + r * row_stride;
    float* g = grad + r * row_stride;
    Vec total = {};
    for (int64_t j = 0; j < columns; j += kWidth) total = fma(load(p + j), load(g + j), total);
    const Vec mean = splat(sum(total));
    for (int64_t j = 0; j < columns; j += kWidth)
      store(g + j, load(p + j) * (load(g + j) - mean) * splat(scale));
  }
}

void transpose(const float* src, int64_t rows, int64_t columns, int64_t src_row, float* dst, int64_t dst_row) {
  for (int64_t i = 0; i < rows; i += kWidth) {
    const int64_t count = rows - i < kWidth ? rows - i : kWidth;
    for (int64_t j = 0; j < columns; ++j) {
      float lanes[kWidth] = {};
      for (int64_t r = 0; r < count; ++r) lanes[r] = src[(i + r) * src_row + j];
      store(dst + j * dst_row + i, load(lanes));
    }
  }
}

}  // namespace
