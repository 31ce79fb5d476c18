// Inner loops of pairwise_comparison. The anchors of a (prompt, reward) lie side by side and are padded to
// whole vectors with +inf, which no reward beats and whose sigmoid is as good as 0. Included by kernels.cpp
// only.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

template <cxrl::Form kForm>
void compare_impl(const cxrl::ComparisonArgs& a, int64_t begin, int64_t end, float* score, float* slope,
                  int64_t* halves) {
  const float inverse_m = 1.0f / static_cast<float>(a.num_anchors);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t first = a.prompt_of[n] * a.num_rewards;
    float total = 0.0f;
    for (int64_t k = 0; k < a.num_rewards; ++k) {
      const float r = a.rewards[n * a.num_rewards + k];
      const float* bank = a.bank + (first + k) * a.padded_m;
      const float inverse = a.inverse[first + k];
      const Vec own = splat(r);
      int beaten = 0;
      Vec bounded = {}, steepness = {};
      for (int64_t m = 0; m < a.padded_m; m += kWidth) {
        const Vec anchor = load(bank + m);
        beaten += count_true(own > anchor) + count_true(own >= anchor);
        if (kForm == cxrl::Form::kBradleyTerry) {
          const Vec s = sigmoid((own - anchor) * splat(inverse));
          bounded += s;
          steepness = fma(s, splat(1.0f) - s, steepness);
        }
      }
      halves[k] += beaten;
      float value = r, gradient = 1.0f;
      if (kForm == cxrl::Form::kDifference) {
        value = (r - a.mean[first + k]) * inverse;
        gradient = inverse;
      }
      if (kForm == cxrl::Form::kWin) {
        value = 0.5f * static_cast<float>(beaten) * inverse_m;
        gradient = 0.0f;  // a share beaten is a step function
      }
      if (kForm == cxrl::Form::kBradleyTerry) {
        value = sum(bounded) * inverse_m;
        gradient = sum(steepness) * inverse_m * inverse;
      }
      total += a.weights[k] * value;
      slope[n * a.num_rewards + k] = gradient;
    }
    score[n] = total;
  }
}

void compare(const cxrl::ComparisonArgs& a, int64_t begin, int64_t end, float* score, float* slope,
             int64_t* halves) {
  switch (a.form) {
    case cxrl::Form::kDifference:
      return compare_impl<cxrl::Form::kDifference>(a, begin, end, score, slope, halves);
    case cxrl::Form::kWin:
      return compare_impl<cxrl::Form::kWin>(a, begin, end, score, slope, halves);
    case cxrl::Form::kBradleyTerry:
      return compare_impl<cxrl::Form::kBradleyTerry>(a, begin, end, score, slope, halves);
    case cxrl::Form::kDirect:
      return compare_impl<cxrl::Form::kDirect>(a, begin, end, score, slope, halves);
  }
}

}  // namespace
