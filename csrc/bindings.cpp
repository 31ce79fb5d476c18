// cxrl._C: the ops on raw addresses. Nothing here knows torch, so one module serves every torch version; the
// Python side (cxrl/ops/_cpp.py) checks shapes and dtypes and keeps the tensors alive for the duration of a
// call.
#include <pybind11/pybind11.h>

#include "common/describe.h"
#include "cpu/ops.h"

namespace py = pybind11;

namespace {

using cxrl::Address, cxrl::at, cxrl::attention_inputs, cxrl::attention_view, cxrl::operand;

void trajectory_log_prob(const py::object& cond, const py::object& uncond, float guidance,
                         const py::object& x_t, const py::object& x_prev, Address table, int64_t table_stride,
                         int64_t batch, int64_t row_size, Address log_prob) {
  const auto c = operand(cond), u = operand(uncond), x = operand(x_t), p = operand(x_prev);
  py::gil_scoped_release release;
  cxrl::trajectory_log_prob_cpu(c, u, guidance, x, p, at<float>(table), table_stride, {batch, row_size},
                                at<float>(log_prob));
}

void trajectory_log_prob_backward(Address grad, int64_t grad_stride, const py::object& cond,
                                  const py::object& uncond, float guidance, const py::object& x_t,
                                  const py::object& x_prev, Address table, int64_t table_stride,
                                  int64_t batch, int64_t row_size, const py::object& grad_cond,
                                  const py::object& grad_uncond) {
  const auto c = operand(cond), u = operand(uncond), x = operand(x_t), p = operand(x_prev);
  const auto gc = operand(grad_cond), gu = operand(grad_uncond);
  py::gil_scoped_release release;
  cxrl::trajectory_log_prob_backward_cpu(at<float>(grad), grad_stride, c, u, guidance, x, p, at<float>(table),
                                         table_stride, {batch, row_size}, gc, gu);
}

void denoise_step(const py::object& cond, const py::object& uncond, float guidance, const py::object& x_t,
                  const py::object& noise, Address table, int64_t table_stride, int64_t batch,
                  int64_t row_size, const py::object& x_prev, Address log_prob) {
  const auto c = operand(cond), u = operand(uncond), x = operand(x_t), z = operand(noise),
             p = operand(x_prev);
  py::gil_scoped_release release;
  cxrl::denoise_step_cpu(c, u, guidance, x, z, at<float>(table), table_stride, {batch, row_size}, p,
                         at<float>(log_prob));
}

void pairwise_comparison(Address rewards, Address anchors, Address prompt_of, Address weights,
                         Address min_std, int form, float temperature, int64_t num_samples,
                         int64_t num_prompts, int64_t num_anchors, int64_t num_rewards, Address score,
                         Address win_rate, Address slope) {
  py::gil_scoped_release release;
  cxrl::pairwise_comparison_cpu(at<float>(rewards), at<float>(anchors), at<int64_t>(prompt_of),
                                at<float>(weights), at<float>(min_std), static_cast<cxrl::Form>(form),
                                temperature, {num_samples, num_prompts, num_anchors, num_rewards},
                                at<float>(score), at<float>(win_rate), at<float>(slope));
}

void pairwise_comparison_backward(Address grad_score, int64_t grad_stride, Address weights, Address slope,
                                  int64_t num_samples, int64_t num_rewards, Address grad_rewards) {
  py::gil_scoped_release release;
  cxrl::pairwise_comparison_backward_cpu(at<float>(grad_score), grad_stride, at<float>(weights),
                                         at<float>(slope), num_samples, num_rewards, at<float>(grad_rewards));
}

void group_win_rate(Address rewards, Address prompt_of, int64_t num_samples, int64_t num_rewards,
                    Address win_rate) {
  py::gil_scoped_release release;
  cxrl::group_win_rate_cpu(at<float>(rewards), at<int64_t>(prompt_of), num_samples, num_rewards,
                           at<float>(win_rate));
}

void attention(const py::tuple& inputs, Address kv_index, float scale, const py::tuple& shape,
               const py::object& out, Address saved, int64_t kept_row) {
  const auto in = attention_inputs(inputs, kv_index, scale, shape);
  const auto o = attention_view(out);
  py::gil_scoped_release release;
  cxrl::attention_cpu(in, o, {at<float>(saved), kept_row});
}

// grads: of q, k, v, extra_k, extra_v.
void attention_backward(const py::object& grad_out, const py::tuple& inputs, Address kv_index, float scale,
                        const py::tuple& shape, Address saved, int64_t kept_row, const py::tuple& grads) {
  const auto in = attention_inputs(inputs, kv_index, scale, shape);
  const auto g = attention_view(grad_out);
  const auto q = attention_view(grads[0]), k = attention_view(grads[1]), v = attention_view(grads[2]);
  const auto extra_k = attention_view(grads[3]), extra_v = attention_view(grads[4]);
  py::gil_scoped_release release;
  cxrl::attention_backward_cpu(in, g, {at<float>(saved), kept_row}, q, k, v, extra_k, extra_v);
}

}  // namespace

#if defined(CXRL_WITH_CUDA)
void bind_cuda(py::module_& m);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled ops of cxrl on raw addresses; call cxrl.ops instead.";
#if defined(CXRL_WITH_CUDA)
  m.attr("has_cuda") = true;
  bind_cuda(m);
#else
  m.attr("has_cuda") = false;
#endif
#if defined(_OPENMP)
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
  m.def("isa", &cxrl::isa_name, "Instruction set of the CPU loops in use: baseline, avx2 or avx512.");
  m.def("set_isa", &cxrl::set_isa, py::arg("name"), "Use another instruction set, or 'auto'. For tests.");
  m.def("attention", &attention);
  m.def("attention_backward", &attention_backward);
  m.def("trajectory_log_prob", &trajectory_log_prob);
  m.def("trajectory_log_prob_backward", &trajectory_log_prob_backward);
  m.def("denoise_step", &denoise_step);
  m.def("pairwise_comparison", &pairwise_comparison);
  m.def("pairwise_comparison_backward", &pairwise_comparison_backward);
  m.def("group_win_rate", &group_win_rate);
}
