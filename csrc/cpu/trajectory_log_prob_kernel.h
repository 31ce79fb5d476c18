// Inner loops of trajectory_log_prob and denoise_step, over dense float32 tiles. Included by kernels.cpp
// only.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

struct StepVectors {
  Vec c_x, c_e, sigma, guidance;
  explicit StepVectors(cxrl::StepRow row)
      : c_x(splat(row.c_x)), c_e(splat(row.c_e)), sigma(splat(row.sigma)), guidance(splat(row.guidance)) {}
};

template <bool kGuided>
inline Vec step_mean(Vec cond, Vec uncond, Vec x_t, const StepVectors& s) {
  Vec m = kGuided ? fma(s.guidance, cond - uncond, uncond) : cond;
  return fma(s.c_e, m, s.c_x * x_t);
}

// Calls body(offset, count) for whole vectors and once for the rest.
template <typename Whole, typename Rest>
inline void for_vectors(int64_t n, Whole whole, Rest rest) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) whole(i);
  if (i < n) rest(i, n - i);
}

template <bool kGuided>
double log_prob_tile_impl(const float* cond, const float* uncond, const float* x_t, const float* x_prev,
                          int64_t n, const StepVectors& s) {
  Vec even = {}, odd = {};
  int64_t i = 0;
  auto squared = [&](int64_t at) {
    Vec d = load(x_prev + at) -
            step_mean<kGuided>(load(cond + at), kGuided ? load(uncond + at) : Vec{}, load(x_t + at), s);
    return d;
  };
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    Vec d0 = squared(i), d1 = squared(i + kWidth);
    even = fma(d0, d0, even);
    odd = fma(d1, d1, odd);
  }
  if (i + kWidth <= n) {
    Vec d0 = squared(i);
    even = fma(d0, d0, even);
    i += kWidth;
  }
  if (i < n) {
    int64_t m = n - i;
    Vec d = load_partial(x_prev + i, m) - step_mean<kGuided>(load_partial(cond + i, m),
                                                             kGuided ? load_partial(uncond + i, m) : Vec{},
                                                             load_partial(x_t + i, m), s);
    odd = fma(d, d, odd);
  }
  return static_cast<double>(sum(even + odd));
}

double log_prob_tile(const float* cond, const float* uncond, const float* x_t, const float* x_prev, int64_t n,
                     cxrl::StepRow row) {
  StepVectors s(row);
  return uncond ? log_prob_tile_impl<true>(cond, uncond, x_t, x_prev, n, s)
                : log_prob_tile_impl<false>(cond, uncond, x_t, x_prev, n, s);
}

template <bool kGuided>
void step_tile_impl(const float* cond, const float* uncond, const float* x_t, const float* noise, int64_t n,
                    const StepVectors& s, float* x_prev) {
  for_vectors(
      n,
      [&](int64_t i) {
        Vec mean = step_mean<kGuided>(load(cond + i), kGuided ? load(uncond + i) : Vec{}, load(x_t + i), s);
        store(x_prev + i, fma(s.sigma, load(noise + i), mean));
      },
      [&](int64_t i, int64_t m) {
        Vec mean =
            step_mean<kGuided>(load_partial(cond + i, m), kGuided ? load_partial(uncond + i, m) : Vec{},
                               load_partial(x_t + i, m), s);
        store_partial(x_prev + i, fma(s.sigma, load_partial(noise + i, m), mean), m);
      });
}

// Writes the tile, then scores what was written, by the loop that scores it later: the same bits, so a ratio
// of exactly 1. The tile is in the first-level cache.
double step_tile(const float* cond, const float* uncond, const float* x_t, const float* noise, int64_t n,
                 cxrl::StepRow row, float* x_prev) {
  StepVectors s(row);
  if (uncond)
    step_tile_impl<true>(cond, uncond, x_t, noise, n, s, x_prev);
  else
    step_tile_impl<false>(cond, uncond, x_t, noise, n, s, x_prev);
  return log_prob_tile(cond, uncond, x_t, x_prev, n, row);
}

template <bool kGuided>
void grad_tile_impl(const float* cond, const float* uncond, const float* x_t, const float* x_prev, int64_t n,
                    const StepVectors& s, Vec to_cond, Vec to_uncond, float* grad_cond, float* grad_uncond) {
  for_vectors(
      n,
      [&](int64_t i) {
        Vec d = load(x_prev + i) -
                step_mean<kGuided>(load(cond + i), kGuided ? load(uncond + i) : Vec{}, load(x_t + i), s);
        if (grad_cond) store(grad_cond + i, to_cond * d);
        if (kGuided && grad_uncond) store(grad_uncond + i, to_uncond * d);
      },
      [&](int64_t i, int64_t m) {
        Vec d = load_partial(x_prev + i, m) -
                step_mean<kGuided>(load_partial(cond + i, m), kGuided ? load_partial(uncond + i, m) : Vec{},
                                   load_partial(x_t + i, m), s);
        if (grad_cond) store_partial(grad_cond + i, to_cond * d, m);
        if (kGuided && grad_uncond) store_partial(grad_uncond + i, to_uncond * d, m);
      });
}

void grad_tile(const float* cond, const float* uncond, const float* x_t, const float* x_prev, int64_t n,
               cxrl::StepRow row, float factor, float* grad_cond, float* grad_uncond) {
  StepVectors s(row);
  if (uncond) {
    grad_tile_impl<true>(cond, uncond, x_t, x_prev, n, s, splat(factor * row.guidance),
                         splat(factor * (1.0f - row.guidance)), grad_cond, grad_uncond);
  } else {
    grad_tile_impl<false>(cond, uncond, x_t, x_prev, n, s, splat(factor), Vec{}, grad_cond, nullptr);
  }
}

}  // namespace
