// The CPU ops, as bindings.cpp calls them. All outputs are written completely.
#pragma once

#include <cstdint>

#include "../common/arguments.h"
#include "kernels.h"

namespace cxrl {

// table: float32 rows (c_x, c_e, sigma), `table_stride` apart. Throws std::invalid_argument on a bad row.
void trajectory_log_prob_cpu(Operand cond, Operand uncond, float guidance, Operand x_t, Operand x_prev,
                             const float* table, int64_t table_stride, StepShape shape, float* log_prob);
void trajectory_log_prob_backward_cpu(const float* grad, int64_t grad_stride, Operand cond, Operand uncond,
                                      float guidance, Operand x_t, Operand x_prev, const float* table,
                                      int64_t table_stride, StepShape shape, Operand grad_cond,
                                      Operand grad_uncond);
void denoise_step_cpu(Operand cond, Operand uncond, float guidance, Operand x_t, Operand noise,
                      const float* table, int64_t table_stride, StepShape shape, Operand x_prev,
                      float* log_prob);

// Dense float32 [N, K], [P, M, K], [N], [K], [K] or null. Throws std::invalid_argument on a bad value. slope
// is [N, K], what the backward needs.
void pairwise_comparison_cpu(const float* rewards, const float* anchors, const int64_t* prompt_of,
                             const float* weights, const float* min_std, Form form, float temperature,
                             ComparisonShape shape, float* score, float* win_rate, float* slope);
void pairwise_comparison_backward_cpu(const float* grad_score, int64_t grad_stride, const float* weights,
                                      const float* slope, int64_t num_samples, int64_t num_rewards,
                                      float* grad_rewards);
void group_win_rate_cpu(const float* rewards, const int64_t* prompt_of, int64_t num_samples,
                        int64_t num_rewards, float* win_rate);

// What the forward leaves for the backward: the log of the softmax denominators [B, H, N], or, where `row` is
// not 0, the probabilities themselves, [B, H, N, row], with room for the keys in whole vectors.
struct Saved {
  float* data;
  int64_t row;
};
void attention_cpu(const AttentionInputs& in, AttentionView out, Saved saved);
void attention_backward_cpu(const AttentionInputs& in, AttentionView grad_out, Saved saved,
                            AttentionView grad_q, AttentionView grad_k, AttentionView grad_v,
                            AttentionView grad_extra_k, AttentionView grad_extra_v);

}  // namespace cxrl
