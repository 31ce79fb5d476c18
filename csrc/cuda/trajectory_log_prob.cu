// trajectory_log_prob and denoise_step: one launch each way. The formulas are in
// cxrl/ops/trajectory_log_prob.py.
#include "ops.h"
#include "trajectory_log_prob.cuh"

namespace cxrl {
namespace {

// Where every tensor is channels last the order of the elements is the same everywhere, and a row is flat.
template <typename... Operands>
void flatten_if_alike(int64_t channels, Operands&... operands) {
  const bool alike = ((!operands || operands.channels == channels) && ...);
  if (alike) ((operands.channels = 0), ...);
}

bool vectors(const Operand& t, int64_t batch) {
  if (!t) return true;
  const bool rows = batch <= 1 || t.row_stride * item_size(t.dtype) % 16 == 0;
  return t.channels == 0 && rows && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

using Kernel = void (*)(StepArguments);

void run(const char* what, CudaCall call, StepArguments& a, StepShape shape, const Kernel (&kernels)[3][2]) {
  if (shape.batch == 0) return;
  flatten_if_alike(a.cond.channels, a.cond, a.uncond, a.x_t, a.x_prev, a.out_cond, a.out_uncond);
  const int64_t tiles = shape.row_size <= kStepTile ? 1 : (shape.row_size + kStepTile - 1) / kStepTile;
  const dim3 grid = grid_of(what, shape.batch * tiles);
  if (shape.row_size > 0x7fffffff)
    throw std::invalid_argument(std::string(what) + ": a row of " + std::to_string(shape.row_size) +
                                " elements, the CUDA kernels take up to 2^31 - 1");
  a.row_size = static_cast<unsigned>(shape.row_size);
  for (const Operand* t : {&a.cond, &a.uncond, &a.x_t, &a.x_prev, &a.out_cond, &a.out_uncond})
    if (t->channels > 0) a.positions = static_cast<unsigned>(shape.row_size / t->channels);
  a.tiles = static_cast<int>(tiles);
  bool vector = true;
  for (const Operand* t : {&a.cond, &a.uncond, &a.x_t, &a.x_prev, &a.out_cond, &a.out_uncond})
    vector = vector && vectors(*t, shape.batch);
  use_device(call.device);
  launch(what, kernels[static_cast<int>(a.cond.dtype)][vector], grid, kStepThreads, 0, call.stream, a);
}

#define CXRL_STEP_KERNELS(name)                                                       \
  {                                                                                   \
    {name<float, false>, name<float, true>}, {name<Half, false>, name<Half, true>}, { \
      name<BFloat, false>, name<BFloat, true>                                         \
    }                                                                                 \
  }

StepArguments arguments(Operand cond, Operand uncond, float guidance, Operand x_t, Operand x_prev,
                        const float* table, int64_t table_stride) {
  StepArguments a = {};
  a.cond = cond;
  a.uncond = uncond;
  a.x_t = x_t;
  a.x_prev = x_prev;
  a.guidance = guidance;
  a.table = table;
  a.table_stride = table_stride;
  return a;
}

}  // namespace

const char* cuda_problem(int device) { return problem_of(device, trajectory_log_prob_kernel<float, true>); }

void trajectory_log_prob_cuda(CudaCall call, Operand cond, Operand uncond, float guidance, Operand x_t,
                              Operand x_prev, const float* table, int64_t table_stride, StepShape shape,
                              float* workspace, unsigned* counters, float* log_prob) {
  static constexpr Kernel kKernels[3][2] = CXRL_STEP_KERNELS(trajectory_log_prob_kernel);
  StepArguments a = arguments(cond, uncond, guidance, x_t, x_prev, table, table_stride);
  a.partial = workspace;
  a.counters = counters;
  a.log_prob = log_prob;
  run("trajectory_log_prob", call, a, shape, kKernels);
}

void trajectory_log_prob_backward_cuda(CudaCall call, const float* grad, int64_t grad_stride, Operand cond,
                                       Operand uncond, float guidance, Operand x_t, Operand x_prev,
                                       const float* table, int64_t table_stride, StepShape shape,
                                       Operand grad_cond, Operand grad_uncond) {
  static constexpr Kernel kKernels[3][2] = CXRL_STEP_KERNELS(trajectory_log_prob_backward_kernel);
  if (shape.row_size == 0) return;
  StepArguments a = arguments(cond, uncond, guidance, x_t, x_prev, table, table_stride);
  a.grad = grad;
  a.grad_stride = grad_stride;
  a.out_cond = grad_cond;
  a.out_uncond = grad_uncond;
  run("trajectory_log_prob_backward", call, a, shape, kKernels);
}

void denoise_step_cuda(CudaCall call, Operand cond, Operand uncond, float guidance, Operand x_t,
                       Operand noise, const float* table, int64_t table_stride, StepShape shape,
                       float* workspace, unsigned* counters, Operand x_prev, float* log_prob) {
  static constexpr Kernel kKernels[3][2] = CXRL_STEP_KERNELS(denoise_step_kernel);
  StepArguments a = arguments(cond, uncond, guidance, x_t, noise, table, table_stride);
  a.out_cond = x_prev;
  a.partial = workspace;
  a.counters = counters;
  a.log_prob = log_prob;
  run("denoise_step", call, a, shape, kKernels);
}

}  // namespace cxrl
