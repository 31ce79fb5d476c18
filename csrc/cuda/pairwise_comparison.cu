// pairwise_comparison and group_win_rate: one launch each. The formulas are in
// cxrl/ops/pairwise_comparison.py.
#include "ops.h"
#include "pairwise_comparison.cuh"

namespace cxrl {

void pairwise_comparison_cuda(CudaCall call, const float* rewards, const float* anchors,
                              const int64_t* prompt_of, const float* weights, const float* min_std, Form form,
                              float temperature, ComparisonShape shape, unsigned long long* counters,
                              float* score, float* win_rate, float* slope) {
  const char* what = "pairwise_comparison";
  int lanes = 1;
  while (lanes < kWarp && lanes < shape.num_rewards) lanes *= 2;
  const int64_t samples = kComparisonThreads / lanes, blocks = (shape.num_samples + samples - 1) / samples;
  const dim3 grid = grid_of(what, blocks > 0 ? blocks : 1);
  const ComparisonArguments a = {rewards,     anchors, prompt_of, weights, min_std,  shape,
                                 temperature, lanes,   counters,  score,   win_rate, slope};
  use_device(call.device);
  switch (form) {
    case Form::kDifference:
      return launch(what, pairwise_comparison_kernel<Form::kDifference>, grid, kComparisonThreads, 0,
                    call.stream, a);
    case Form::kWin:
      return launch(what, pairwise_comparison_kernel<Form::kWin>, grid, kComparisonThreads, 0, call.stream,
                    a);
    case Form::kBradleyTerry:
      return launch(what, pairwise_comparison_kernel<Form::kBradleyTerry>, grid, kComparisonThreads, 0,
                    call.stream, a);
    case Form::kDirect:
      return launch(what, pairwise_comparison_kernel<Form::kDirect>, grid, kComparisonThreads, 0, call.stream,
                    a);
  }
}

void pairwise_comparison_backward_cuda(CudaCall call, const float* grad_score, int64_t grad_stride,
                                       const float* weights, const float* slope, int64_t num_samples,
                                       int64_t num_rewards, float* grad_rewards) {
  const int64_t elements = num_samples * num_rewards;
  if (elements == 0) return;
  use_device(call.device);
  launch("pairwise_comparison_backward", pairwise_comparison_backward_kernel,
         grid_of("pairwise_comparison_backward", (elements + kComparisonThreads - 1) / kComparisonThreads),
         kComparisonThreads, 0, call.stream, grad_score, grad_stride, weights, slope, num_samples,
         num_rewards, grad_rewards);
}

void group_win_rate_cuda(CudaCall call, const float* rewards, const int64_t* prompt_of, const int64_t* order,
                         int64_t num_samples, int64_t num_rewards, float* win_rate) {
  const int64_t elements = num_samples * num_rewards;
  if (elements == 0) return;
  use_device(call.device);
  launch("group_win_rate", group_win_rate_kernel,
         grid_of("group_win_rate", (elements + kComparisonThreads - 1) / kComparisonThreads),
         kComparisonThreads, 0, call.stream, rewards, prompt_of, order, num_samples, num_rewards, win_rate);
}

}  // namespace cxrl
