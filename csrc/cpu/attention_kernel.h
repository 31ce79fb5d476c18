// Inner loops of attention: a small matrix product and the row-wise softmax, forward and backward. Included
// by kernels.cpp only.
#pragma once

#include <type_traits>
#include <utility>

#include "kernels.h"
#include "simd.h"

namespace {

// c[kRows, kVecs * width] (+)= a[kRows, depth] · b[depth, kVecs * width], all of c in registers.
template <int kRows, int kVecs>
inline void product_block(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t b_row,
                          float* c, int64_t c_row, int64_t depth, bool accumulate) {
  Vec total[kRows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) total[i][j] = accumulate ? load(c + i * c_row + j * kWidth) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) right[j] = load(b + k * b_row + j * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec left = splat(a[i * a_row + k * a_col]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) total[i][j] = fma(left, right[j], total[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) store(c + i * c_row + j * kWidth, total[i][j]);
  }
}

// The columns of kVecs vectors: blocks that fill the registers, 16 of AVX2 or 32 of AVX-512, with sums enough
// to hide the latency of an fma. Rows that do not divide are spread over blocks one row shorter.
template <int kVecs>
inline void product_panel(const cxrl::Product& p, int64_t column) {
  constexpr int kRows = (kWidth == 16 && kVecs > 1 ? 24 : 12) / kVecs;
  int64_t i = 0;
  auto blocks = [&](auto rows, int64_t count) {
    constexpr int kCount = decltype(rows)::value;
    for (; count > 0; --count, i += kCount)
      product_block<kCount, kVecs>(p.a + i * p.a_row, p.a_row, p.a_col, p.b + column, p.b_row,
                                   p.c + i * p.c_row + column, p.c_row, p.depth, p.accumulate);
  };
  const int64_t missing = (kRows - p.rows % kRows) % kRows;
  const int64_t shorter = missing * (kRows - 1) <= p.rows ? missing : 0;
  blocks(std::integral_constant<int, kRows>{}, (p.rows - shorter * (kRows - 1)) / kRows);
  blocks(std::integral_constant<int, kRows - 1>{}, shorter);
  blocks(std::integral_constant<int, 4>{}, (p.rows - i) / 4);  // too few rows for that
  blocks(std::integral_constant<int, 1>{}, p.rows - i);
}

void product(const cxrl::Product& p) {
  constexpr int kMost = kWidth == 16 ? 4 : 3;  // vectors side by side
  int64_t left = p.columns / kWidth, column = 0;
  auto panel = [&](auto vecs) {
    constexpr int kVecs = decltype(vecs)::value;
    product_panel<kVecs>(p, column);
    column += kVecs * kWidth;
    left -= kVecs;
  };
  while (left > 0) {
    // A single vector at the end would make its blocks wait for memory more than they compute.
    if (left == kMost + 1 || left == kMost - 1) {
      panel(std::integral_constant<int, kMost - 1>{});
    } else if (left >= kMost) {
      panel(std::integral_constant<int, kMost>{});
    } else if (left >= 2) {
      panel(std::integral_constant<int, 2>{});
    } else {
      panel(std::integral_constant<int, 1>{});
    }
  }
}

// Which lanes of the last vector of a row are columns: all ones there, else zero.
inline IVec last_lanes(int64_t columns) {
  IVec mask = {};
  for (int64_t i = 0; i < kWidth; ++i) mask[i] = i < columns - (columns - 1) / kWidth * kWidth ? -1 : 0;
  return mask;
}

// Calls body(j) for every vector of `columns`, then last(j) for the one that may reach past them.
template <typename Body, typename Last>
inline void for_row(int64_t columns, Body body, Last last) {
  int64_t j = 0;
  for (; j + kWidth < columns; j += kWidth) body(j);
  last(j);
}

// Several rows at once: a row alone waits for its own maximum, exponentials and sum.
template <int kGroup>
inline void softmax_group(float* scores, int64_t columns, int64_t stride, Vec factor, IVec lanes, float* tops,
                          float* denominators) {
  Vec largest[kGroup], total[kGroup], offset[kGroup];
  auto each = [](auto body) {
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) body(r);
  };
  auto at = [&](int r, int64_t j) { return scores + r * stride + j; };
  each([&](int r) { largest[r] = splat(-3.0e38f), total[r] = Vec{}; });
  for_row(
      columns,
      [&](int64_t j) { each([&](int r) { largest[r] = max(largest[r], load(at(r, j)) * factor); }); },
      [&](int64_t j) {
        each([&](int r) {
          largest[r] = max(largest[r], select(lanes, load(at(r, j)) * factor, splat(-3.0e38f)));
        });
      });
  each([&](int r) { tops[r] = maximum(largest[r]), offset[r] = splat(-tops[r]); });
  auto exponential = [&](int r, int64_t j) { return exp(fma(load(at(r, j)), factor, offset[r])); };
  auto keep = [&](int r, int64_t j, Vec e) { store(at(r, j), e), total[r] += e; };
  for_row(
      columns, [&](int64_t j) { each([&](int r) { keep(r, j, exponential(r, j)); }); },
      [&](int64_t j) { each([&](int r) { keep(r, j, select(lanes, exponential(r, j), Vec{})); }); });
  each([&](int r) { denominators[r] = sum(total[r]), total[r] = splat(1.0f / denominators[r]); });
  for (int64_t j = 0; j < columns; j += kWidth)
    each([&](int r) { store(at(r, j), load(at(r, j)) * total[r]); });
}

void softmax_rows(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                  float* log_sum_exp) {
  const Vec factor = splat(scale);
  const IVec lanes = last_lanes(columns);
  float tops[cxrl::kMaxRows];
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    softmax_group<4>(scores + r * row_stride, columns, row_stride, factor, lanes, tops + r, log_sum_exp + r);
  for (; r < rows; ++r)
    softmax_group<1>(scores + r * row_stride, columns, row_stride, factor, lanes, tops + r, log_sum_exp + r);
  for (r = 0; r < rows; r += kWidth) {
    const int64_t count = rows - r < kWidth ? rows - r : kWidth;
    const Vec logs = log(load_partial(log_sum_exp + r, count));
    store_partial(log_sum_exp + r, load_partial(tops + r, count) + logs, count);
  }
}

void probability_rows(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                      const float* log_sum_exp) {
  const IVec lanes = last_lanes(columns);
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * row_stride;
    const Vec offset = splat(-log_sum_exp[r]);
    auto probability = [&](int64_t j) { return exp(fma(load(s + j), splat(scale), offset)); };
    for_row(
        columns, [&](int64_t j) { store(s + j, probability(j)); },
        [&](int64_t j) { store(s + j, select(lanes, probability(j), Vec{})); });
  }
}

template <int kGroup>
inline void softmax_grad_group(const float* probability, float* grad, int64_t columns, int64_t stride,
                               Vec scale) {
  Vec total[kGroup] = {};
  auto each = [](auto body) {
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) body(r);
  };
  for (int64_t j = 0; j < columns; j += kWidth)
    each([&](int r) {
      total[r] = fma(load(probability + r * stride + j), load(grad + r * stride + j), total[r]);
    });
  each([&](int r) { total[r] = splat(sum(total[r])); });
  for (int64_t j = 0; j < columns; j += kWidth)
    each([&](int r) {
      const int64_t at = r * stride + j;
      store(grad + at, load(probability + at) * (load(grad + at) - total[r]) * scale);
    });
}

// grad holds d loss / d probability and becomes d loss / d (q · k).
void softmax_grad_rows(const float* probability, float* grad, int64_t rows, int64_t columns,
                       int64_t row_stride, float scale) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    softmax_grad_group<4>(probability + r * row_stride, grad + r * row_stride, columns, row_stride,
                          splat(scale));
  for (; r < rows; ++r)
    softmax_grad_group<1>(probability + r * row_stride, grad + r * row_stride, columns, row_stride,
                          splat(scale));
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
void transpose(const float* src, int64_t rows, int64_t columns, int64_t src_row, float* dst,
               int64_t dst_row) {
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
