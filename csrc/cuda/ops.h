// The CUDA ops, as bindings_cuda.cpp calls them. Addresses are of the device; nothing here waits for it. All
// outputs are written completely. A failed launch throws std::runtime_error with CUDA's own words.
#pragma once

#include <cstdint>

#include "../common/arguments.h"

namespace cxrl {

struct CudaCall {
  int device;
  void* stream;
};

// Why kernels cannot run on `device` (no driver, architecture not compiled); empty if they can.
const char* cuda_problem(int device);

// Rows are cut into tiles of kStepTile elements, one block each. Where a row has several tiles, `workspace`
// holds a float for every tile and `counters` an unsigned for every row, zero before and after.
constexpr int64_t kStepTile = 4096;
void trajectory_log_prob_cuda(CudaCall call, Operand cond, Operand uncond, float guidance, Operand x_t,
                              Operand x_prev, const float* table, int64_t table_stride, StepShape shape,
                              float* workspace, unsigned* counters, float* log_prob);
void trajectory_log_prob_backward_cuda(CudaCall call, const float* grad, int64_t grad_stride, Operand cond,
                                       Operand uncond, float guidance, Operand x_t, Operand x_prev,
                                       const float* table, int64_t table_stride, StepShape shape,
                                       Operand grad_cond, Operand grad_uncond);
void denoise_step_cuda(CudaCall call, Operand cond, Operand uncond, float guidance, Operand x_t,
                       Operand noise, const float* table, int64_t table_stride, StepShape shape,
                       float* workspace, unsigned* counters, Operand x_prev, float* log_prob);

// As the CPU's, with num_rewards + 1 counters that are zero before and after.
void pairwise_comparison_cuda(CudaCall call, const float* rewards, const float* anchors,
                              const int64_t* prompt_of, const float* weights, const float* min_std, Form form,
                              float temperature, ComparisonShape shape, unsigned long long* counters,
                              float* score, float* win_rate, float* slope);
void pairwise_comparison_backward_cuda(CudaCall call, const float* grad_score, int64_t grad_stride,
                                       const float* weights, const float* slope, int64_t num_samples,
                                       int64_t num_rewards, float* grad_rewards);
// `prompt_of` ascending, `rewards` in the same order; row i of the result goes to row order[i].
void group_win_rate_cuda(CudaCall call, const float* rewards, const int64_t* prompt_of, const int64_t* order,
                         int64_t num_samples, int64_t num_rewards, float* win_rate);

// log_sum_exp and delta: float32 [B, H, N]. parts: float32 [B, attention_splits, H, keys + extra_keys, 2,
// dim].
constexpr int64_t kMaxHeadDim = 160;
int64_t attention_splits(const AttentionShape& shape, DType dtype);
void attention_cuda(CudaCall call, const AttentionInputs& in, AttentionView out, float* log_sum_exp);
void attention_backward_cuda(CudaCall call, const AttentionInputs& in, AttentionView grad_out,
                             AttentionView out, const float* log_sum_exp, float* delta, float* parts,
                             AttentionView grad_q, AttentionView grad_k, AttentionView grad_v,
                             AttentionView grad_extra_k, AttentionView grad_extra_v);

}  // namespace cxrl
