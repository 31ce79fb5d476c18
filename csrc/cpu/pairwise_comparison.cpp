// pairwise_comparison and group_win_rate. The bank is laid out once ([P, K, padded M], means, inverse
// standard deviations), then samples are compared in blocks. The formulas are in
// cxrl/ops/pairwise_comparison.py.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../common/parallel.h"
#include "ops.h"

namespace cxrl {
namespace {

constexpr int64_t kBlock = 256;  // samples in a unit of work
constexpr float kDefaultMinStd = 1e-6f;

[[noreturn]] void refuse(const char* op, const char* name, const std::vector<int64_t>& index, double value,
                         const std::string& expected) {
  std::ostringstream message;
  message << op << ": " << name << "[";
  for (size_t i = 0; i < index.size(); ++i) message << (i ? ", " : "") << index[i];
  message << "] = " << value << ", expected " << expected;
  throw std::invalid_argument(message.str());
}

void check_rewards(const char* op, const float* rewards, int64_t num_samples, int64_t num_rewards) {
  const int64_t bad = kernels().find_nonfinite(rewards, num_samples * num_rewards);
  if (bad >= 0) refuse(op, "rewards", {bad / num_rewards, bad % num_rewards}, rewards[bad], "finite values");
}

struct Bank {
  std::vector<float> values, mean, inverse;
  int64_t padded_m;
};

Bank prepare_bank(const float* anchors, const float* min_std, Form form, float temperature,
                  const ComparisonShape& s) {
  const int64_t width = kernels().width;
  Bank bank;
  bank.padded_m = (s.num_anchors + width - 1) / width * width;
  const int64_t columns = s.num_prompts * s.num_rewards;
  bank.values.assign(static_cast<size_t>(columns * bank.padded_m), std::numeric_limits<float>::infinity());
  bank.mean.assign(static_cast<size_t>(columns), 0.0f);
  bank.inverse.assign(static_cast<size_t>(columns), 1.0f);
  const bool scaled = form == Form::kDifference || form == Form::kBradleyTerry;
  parallel_for(s.num_prompts, columns * s.num_anchors, [&](int64_t p) {
    for (int64_t k = 0; k < s.num_rewards; ++k) {
      const float* source = anchors + p * s.num_anchors * s.num_rewards + k;
      const size_t at = static_cast<size_t>(p * s.num_rewards + k);
      float* target = bank.values.data() + at * static_cast<size_t>(bank.padded_m);
      double total = 0.0;
      for (int64_t m = 0; m < s.num_anchors; ++m) {
        target[m] = source[m * s.num_rewards];
        total += target[m];
      }
      if (!scaled) continue;
      const double mean = total / static_cast<double>(s.num_anchors);
      double squares = 0.0;
      for (int64_t m = 0; m < s.num_anchors; ++m) squares += (target[m] - mean) * (target[m] - mean);
      const double std = std::sqrt(squares / static_cast<double>(s.num_anchors));
      const double scale = std::max(std, static_cast<double>(min_std ? min_std[k] : kDefaultMinStd));
      bank.mean[at] = static_cast<float>(mean);
      bank.inverse[at] =
          static_cast<float>(1.0 / (form == Form::kBradleyTerry ? scale * temperature : scale));
    }
  });
  return bank;
}

}  // namespace

void pairwise_comparison_cpu(const float* rewards, const float* anchors, const int64_t* prompt_of,
                             const float* weights, const float* min_std, Form form, float temperature,
                             ComparisonShape s, float* score, float* win_rate, float* slope) {
  const char* op = "pairwise_comparison";
  check_rewards(op, rewards, s.num_samples, s.num_rewards);
  const int64_t bad = kernels().find_nonfinite(anchors, s.num_prompts * s.num_anchors * s.num_rewards);
  if (bad >= 0) {
    const int64_t row = bad / s.num_rewards;
    refuse(op, "anchors", {row / s.num_anchors, row % s.num_anchors, bad % s.num_rewards}, anchors[bad],
           "finite values");
  }
  for (int64_t n = 0; n < s.num_samples; ++n) {
    if (prompt_of[n] < 0 || prompt_of[n] >= s.num_prompts)
      refuse(op, "prompt_of", {n}, static_cast<double>(prompt_of[n]),
             "0 to " + std::to_string(s.num_prompts - 1));
  }
  for (int64_t k = 0; min_std && k < s.num_rewards; ++k) {
    if (!(min_std[k] > 0.0f)) refuse(op, "min_std", {k}, min_std[k], "a positive value");
  }
  const Bank bank = prepare_bank(anchors, min_std, form, temperature, s);
  const ComparisonArgs args = {rewards,          prompt_of,
                               weights,          bank.values.data(),
                               bank.mean.data(), bank.inverse.data(),
                               s.num_rewards,    s.num_anchors,
                               bank.padded_m,    form};
  const int64_t blocks = (s.num_samples + kBlock - 1) / kBlock;
  std::vector<int64_t> halves(static_cast<size_t>(blocks * s.num_rewards), 0);
  parallel_for(blocks, s.num_samples * s.num_rewards * bank.padded_m, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, s.num_samples);
    kernels().compare(args, begin, end, score, slope, halves.data() + block * s.num_rewards);
  });
  for (int64_t k = 0; k < s.num_rewards; ++k) {
    int64_t total = 0;
    for (int64_t block = 0; block < blocks; ++block)
      total += halves[static_cast<size_t>(block * s.num_rewards + k)];
    const double pairs = static_cast<double>(s.num_samples) * static_cast<double>(s.num_anchors);
    win_rate[k] = s.num_samples ? static_cast<float>(0.5 * static_cast<double>(total) / pairs) : 0.0f;
  }
}

void pairwise_comparison_backward_cpu(const float* grad_score, int64_t grad_stride, const float* weights,
                                      const float* slope, int64_t num_samples, int64_t num_rewards,
                                      float* grad_rewards) {
  for (int64_t n = 0; n < num_samples; ++n) {
    const float grad = grad_score[n * grad_stride];
    for (int64_t k = 0; k < num_rewards; ++k)
      grad_rewards[n * num_rewards + k] = grad * weights[k] * slope[n * num_rewards + k];
  }
}

void group_win_rate_cpu(const float* rewards, const int64_t* prompt_of, int64_t num_samples,
                        int64_t num_rewards, float* win_rate) {
  check_rewards("group_win_rate", rewards, num_samples, num_rewards);
  std::vector<int64_t> order(static_cast<size_t>(num_samples));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return prompt_of[a] < prompt_of[b]; });
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < num_samples; ++i) {
    if (i == 0 || prompt_of[order[static_cast<size_t>(i)]] != prompt_of[order[static_cast<size_t>(i - 1)]])
      starts.push_back(i);
  }
  starts.push_back(num_samples);
  const int64_t groups = static_cast<int64_t>(starts.size()) - 1;
  parallel_for(groups, 16 * num_samples * num_rewards, [&](int64_t group) {
    std::vector<int64_t> members(order.begin() + starts[static_cast<size_t>(group)],
                                 order.begin() + starts[static_cast<size_t>(group + 1)]);
    const size_t size = members.size();
    for (int64_t k = 0; k < num_rewards; ++k) {
      auto value = [&](int64_t n) { return rewards[n * num_rewards + k]; };
      std::sort(members.begin(), members.end(), [&](int64_t a, int64_t b) { return value(a) < value(b); });
      // A run of equal rewards beats all before it and ties with the rest of itself.
      for (size_t begin = 0, end; begin < size; begin = end) {
        for (end = begin; end < size && value(members[end]) == value(members[begin]);) ++end;
        const double beaten = static_cast<double>(begin) + 0.5 * static_cast<double>(end - begin - 1);
        const double share = size > 1 ? beaten / static_cast<double>(size - 1) : 0.5;
        for (size_t i = begin; i < end; ++i)
          win_rate[members[i] * num_rewards + k] = static_cast<float>(share);
      }
    }
  });
}

}  // namespace cxrl
