// The CUDA half of cxrl._C: as the CPU functions of bindings.cpp, with the device and the stream first and
// the scratch memory that cxrl/ops/_cuda.py allocates.
#include <pybind11/pybind11.h>

#include "common/describe.h"
#include "cuda/ops.h"

namespace py = pybind11;

namespace {

using cxrl::Address, cxrl::at, cxrl::attention_inputs, cxrl::attention_view, cxrl::operand;

cxrl::CudaCall call_of(int device, Address stream) { return {device, at<void>(stream)}; }

void trajectory_log_prob(int device, Address stream, const py::object& cond, const py::object& uncond,
                         float guidance, const py::object& x_t, const py::object& x_prev, Address table,
                         int64_t table_stride, int64_t batch, int64_t row_size, Address workspace,
                         Address counters, Address log_prob) {
  cxrl::trajectory_log_prob_cuda(call_of(device, stream), operand(cond), operand(uncond), guidance,
                                 operand(x_t), operand(x_prev), at<float>(table), table_stride,
                                 {batch, row_size}, at<float>(workspace), at<unsigned>(counters),
                                 at<float>(log_prob));
}

void trajectory_log_prob_backward(int device, Address stream, Address grad, int64_t grad_stride,
                                  const py::object& cond, const py::object& uncond, float guidance,
                                  const py::object& x_t, const py::object& x_prev, Address table,
                                  int64_t table_stride, int64_t batch, int64_t row_size,
                                  const py::object& grad_cond, const py::object& grad_uncond) {
  cxrl::trajectory_log_prob_backward_cuda(call_of(device, stream), at<float>(grad), grad_stride,
                                          operand(cond), operand(uncond), guidance, operand(x_t),
                                          operand(x_prev), at<float>(table), table_stride, {batch, row_size},
                                          operand(grad_cond), operand(grad_uncond));
}

void denoise_step(int device, Address stream, const py::object& cond, const py::object& uncond,
                  float guidance, const py::object& x_t, const py::object& noise, Address table,
                  int64_t table_stride, int64_t batch, int64_t row_size, Address workspace, Address counters,
                  const py::object& x_prev, Address log_prob) {
  cxrl::denoise_step_cuda(call_of(device, stream), operand(cond), operand(uncond), guidance, operand(x_t),
                          operand(noise), at<float>(table), table_stride, {batch, row_size},
                          at<float>(workspace), at<unsigned>(counters), operand(x_prev), at<float>(log_prob));
}

void pairwise_comparison(int device, Address stream, Address rewards, Address anchors, Address prompt_of,
                         Address weights, Address min_std, int form, float temperature, int64_t num_samples,
                         int64_t num_prompts, int64_t num_anchors, int64_t num_rewards, Address counters,
                         Address score, Address win_rate, Address slope) {
  cxrl::pairwise_comparison_cuda(
      call_of(device, stream), at<float>(rewards), at<float>(anchors), at<int64_t>(prompt_of),
      at<float>(weights), at<float>(min_std), static_cast<cxrl::Form>(form), temperature,
      {num_samples, num_prompts, num_anchors, num_rewards}, at<unsigned long long>(counters),
      at<float>(score), at<float>(win_rate), at<float>(slope));
}

void pairwise_comparison_backward(int device, Address stream, Address grad_score, int64_t grad_stride,
                                  Address weights, Address slope, int64_t num_samples, int64_t num_rewards,
                                  Address grad_rewards) {
  cxrl::pairwise_comparison_backward_cuda(call_of(device, stream), at<float>(grad_score), grad_stride,
                                          at<float>(weights), at<float>(slope), num_samples, num_rewards,
                                          at<float>(grad_rewards));
}

void group_win_rate(int device, Address stream, Address rewards, Address prompt_of, Address order,
                    int64_t num_samples, int64_t num_rewards, Address win_rate) {
  cxrl::group_win_rate_cuda(call_of(device, stream), at<float>(rewards), at<int64_t>(prompt_of),
                            at<int64_t>(order), num_samples, num_rewards, at<float>(win_rate));
}

void attention(int device, Address stream, const py::tuple& inputs, Address kv_index, float scale,
               const py::tuple& shape, const py::object& out, Address log_sum_exp) {
  cxrl::attention_cuda(call_of(device, stream), attention_inputs(inputs, kv_index, scale, shape),
                       attention_view(out), at<float>(log_sum_exp));
}

// grads: of q, k, v, extra_k, extra_v.
void attention_backward(int device, Address stream, const py::object& grad_out, const py::tuple& inputs,
                        Address kv_index, float scale, const py::tuple& shape, const py::object& out,
                        Address log_sum_exp, Address delta, Address parts, const py::tuple& grads) {
  cxrl::attention_backward_cuda(call_of(device, stream), attention_inputs(inputs, kv_index, scale, shape),
                                attention_view(grad_out), attention_view(out), at<float>(log_sum_exp),
                                at<float>(delta), at<float>(parts), attention_view(grads[0]),
                                attention_view(grads[1]), attention_view(grads[2]), attention_view(grads[3]),
                                attention_view(grads[4]));
}

}  // namespace

void bind_cuda(py::module_& module) {
  py::module_ m = module.def_submodule("cuda", "The CUDA kernels; device and stream come first.");
#if defined(CXRL_CUDA_EMULATION)
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  m.attr("step_tile") = cxrl::kStepTile;
  m.attr("max_head_dim") = cxrl::kMaxHeadDim;
  m.def("problem", &cxrl::cuda_problem, py::arg("device"), "Why kernels cannot run on the device, or ''.");
  m.def("attention_splits", [](const py::tuple& shape, int dtype) {
    return cxrl::attention_splits(cxrl::attention_shape(shape), static_cast<cxrl::DType>(dtype));
  });
  m.def("attention", &attention);
  m.def("attention_backward", &attention_backward);
  m.def("trajectory_log_prob", &trajectory_log_prob);
  m.def("trajectory_log_prob_backward", &trajectory_log_prob_backward);
  m.def("denoise_step", &denoise_step);
  m.def("pairwise_comparison", &pairwise_comparison);
  m.def("pairwise_comparison_backward", &pairwise_comparison_backward);
  m.def("group_win_rate", &group_win_rate);
}
