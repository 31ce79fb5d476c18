// Inner loops of attention: a small matrix product and the row-wise softmax, forward and backward. Included by
// kernels.cpp only.
#pragma once

#include <type_traits>
#include <utility>

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
  const Vec factor = splat(scale);
  const int64_t whole = columns / kWidth * kWidth;
  float tops[cxrl::kMaxRows];
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * row_stride;
    Vec largest = splat(-3.0e38f);
    for (int64_t j = 0; j < whole; j += kWidth) largest = max(largest, load(s + j) * factor);
    if (whole < columns)
      largest = max(largest, keep_valid(load(s + whole) * factor, columns - whole, -3.0e38f));
    const float top = maximum(largest);
    const Vec offset = splat(-top);
    Vec total = {};
    for (int64_t j = 0; j < whole; j += kWidth) {
      const Vec e = exp(fma(load(s + j), factor, offset));
      store(s + j, e);
      total += e;
    }
    if (whole < columns) {
      const Vec e = keep_valid(exp(fma(load(s + whole), factor, offset)), columns - whole, 0.0f);
      store(s + whole, e);
      total += e;
    }
    const float denominator = sum(total);
    const Vec inverse = splat(1.0f / denominator);
    for (int64_t j = 0; j < columns; j += kWidth) store(s + j, load(s + j) * inverse);
    tops[r] = top;
    log_sum_exp[r] = denominator;
  }
  for (int64_t r = 0; r < rows; r += kWidth) {
    const int64_t count = rows - r < kWidth ? rows - r : kWidth;
    const Vec logs = log(load_partial(log_sum_exp + r, count));
    store_partial(log_sum_exp + r, load_partial(tops + r, count) + logs, count);
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

// The two halves of a and b interleaved: a0 b0 a1 b1 ... from the lower or the upper halves.
template <int kFirst, size_t... kLane>
inline Vec interleave(Vec a, Vec b, std::index_sequence<kLane...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (kFirst + static_cast<int>(kLane) / 2 + (kLane % 2 ? kWidth : 0))...);
#else
  return __builtin_shuffle(a, b, IVec{(kFirst + static_cast<int>(kLane) / 2 + (kLane % 2 ? kWidth : 0))...});
#endif
}

// dst[j, i] = src[i, j]; src has rows of whole vectors.
void transpose(const float* src, int64_t rows, int64_t columns, int64_t src_row, float* dst, int64_t dst_row) {
  using Lanes = std::make_index_sequence<kWidth>;
  for (int64_t i = 0; i < rows; i += kWidth) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      Vec block[kWidth], next[kWidth];
      for (int r = 0; r < kWidth; ++r) block[r] = i + r < rows ? load(src + (i + r) * src_row + j) : Vec{};
      for (int stage = 1; stage < kWidth; stage *= 2) {
        for (int r = 0; r < kWidth / 2; ++r) {
          next[2 * r] = interleave<0>(block[r], block[r + kWidth / 2], Lanes{});
          next[2 * r + 1] = interleave<kWidth / 2>(block[r], block[r + kWidth / 2], Lanes{});
        }
        for (int r = 0; r < kWidth; ++r) block[r] = next[r];
      }
      for (int r = 0; r < kWidth && j + r < columns; ++r) store(dst + (j + r) * dst_row + i, block[r]);
    }
  }
}

}  // namespace
