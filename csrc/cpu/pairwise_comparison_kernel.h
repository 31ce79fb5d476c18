// Inner loops of pairwise_comparison. The anchors of a (prompt, reward) lie side by side and are padded to whole
// vectors with +inf, which no reward beats and whose sigmoid is 0. Included by kernels.cpp only.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

// Half for every anchor that is beaten and half for every one that is not better: ties count half.
inline Vec half_counts(Vec own, Vec anchor) {
  const IVec half = (IVec)splat(0.5f);
  return (Vec)((own > anchor) & half) + (Vec)((own >= anchor) & half);
}

template <cxrl::Form kForm>
void compare_impl(const cxrl::ComparisonArgs& a, int64_t begin, int64_t end, float* score, double* share_sum) {
  const float inverse_m = 1.0f / static_cast<float>(a.num_anchors);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t first = a.prompt[n] * a.num_rewards;
    float total = 0.0f;
    for (int64_t k = 0; k < a.num_rewards; ++k) {
      const float r = a.rewards[n * a.num_rewards + k];
      const float* bank = a.bank + (first + k) * a.padded_m;
      const Vec own = splat(r);
      Vec beaten = {}, bounded = {};
      for (int64_t m = 0; m < a.padded_m; m += kWidth) {
        const Vec anchor = load(bank + m);
        beaten += half_counts(own, anchor);
        if (kForm == cxrl::Form::kBradleyTerry)
          bounded += sigmoid((own - anchor) * splat(a.inverse[first + k]));
      }
      const float share = sum(beaten) * inverse_m;
      share_sum[k] += static_cast<double>(share);
      float value = r;
      if (kForm == cxrl::Form::kDifference) value = (r - a.mean[first + k]) * a.inverse[first + k];
      if (kForm == cxrl::Form::kWin) value = share;
      if (kForm == cxrl::Form::kBradleyTerry) value = sum(bounded) * inverse_m;
      total += a.weights[k] * value;
    }
    score[n] = total;
  }
}

void compare(const cxrl::ComparisonArgs& a, int64_t begin, int64_t end, float* score, double* share_sum) {
  switch (a.form) {
    case cxrl::Form::kDifference:
      return compare_impl<cxrl::Form::kDifference>(a, begin, end, score, share_sum);
    case cxrl::Form::kWin:
      return compare_impl<cxrl::Form::kWin>(a, begin, end, score, share_sum);
    case cxrl::Form::kBradleyTerry:
      return compare_impl<cxrl::Form::kBradleyTerry>(a, begin, end, score, share_sum);
    case cxrl::Form::kDirect:
      return compare_impl<cxrl::Form::kDirect>(a, begin, end, score, share_sum);
  }
}

void compare_grad(const cxrl::ComparisonArgs& a, int64_t begin, int64_t end, const float* grad_score,
                  float* grad_rewards) {
  const float inverse_m = 1.0f / static_cast<float>(a.num_anchors);
  for (int64_t n = begin; n < end; ++n) {
    for (int64_t k = 0; k < a.num_rewards; ++k) {
      const int64_t at = a.prompt[n] * a.num_rewards + k;
      float slope = 0.0f;  // a share beaten is a step function
      if (a.form == cxrl::Form::kDirect) slope = 1.0f;
      if (a.form == cxrl::Form::kDifference) slope = a.inverse[at];
      if (a.form == cxrl::Form::kBradleyTerry) {
        const Vec own = splat(a.rewards[n * a.num_rewards + k]);
        Vec total = {};
        for (int64_t m = 0; m < a.padded_m; m += kWidth) {
          const Vec s = sigmoid((own - load(a.bank + at * a.padded_m + m)) * splat(a.inverse[at]));
          total += s * (splat(1.0f) - s);
        }
        slope = sum(total) * inverse_m * a.inverse[at];
      }
      grad_rewards[n * a.num_rewards + k] = grad_score[n] * a.weights[k] * slope;
    }
  }
}

}  // namespace
