// Kernels of pairwise_comparison and group_win_rate. A sample has a few neighbouring lanes, one for each
// reward; each lane goes through its bank three times (mean, deviation, comparison), which the cache holds.
#pragma once

#include "device.cuh"

namespace cxrl {

constexpr int kComparisonThreads = 256;
constexpr float kDefaultMinStd = 1e-6f;

struct ComparisonArguments {
  const float* rewards;
  const float* anchors;
  const int64_t* prompt_of;
  const float* weights;
  const float* min_std;
  ComparisonShape shape;
  float temperature;
  int lanes;  // of a sample: a power of two up to a warp
  unsigned long long* counters;
  float* score;
  float* win_rate;
  float* slope;
};

struct BankStatistics {
  float mean, std;
};

// Two passes with the mean corrected by what its rounding left over, so that offsets do not swamp the
// deviation.
__device__ __forceinline__ BankStatistics bank_statistics(const float* bank, int64_t stride, int64_t count) {
  float total = 0.0f;
  for (int64_t m = 0; m < count; ++m) total += bank[m * stride];
  const float size = static_cast<float>(count), mean = total / size;
  float rest = 0.0f, squares = 0.0f;
  for (int64_t m = 0; m < count; ++m) {
    const float d = bank[m * stride] - mean;
    rest += d;
    squares = fmaf(d, d, squares);
  }
  const float variance = (squares - rest * rest / size) / size;
  return {mean + rest / size, sqrtf(variance > 0.0f ? variance : 0.0f)};
}

struct Compared {
  float value, slope;
  int halves;
};

template <Form kForm>
__device__ __forceinline__ Compared compare_with_bank(const ComparisonArguments& a, int64_t n, int64_t k) {
  const int64_t num_rewards = a.shape.num_rewards, num_anchors = a.shape.num_anchors, p = a.prompt_of[n];
  // Nobody has looked at the index: a wrong one must not be followed.
  if (p < 0 || p >= a.shape.num_prompts) return {not_a_number(), not_a_number(), 0};
  const float* bank = a.anchors + p * num_anchors * num_rewards + k;
  const float r = a.rewards[n * num_rewards + k];
  float mean = 0.0f, inverse = 1.0f;
  if (kForm == Form::kDifference || kForm == Form::kBradleyTerry) {
    const BankStatistics s = bank_statistics(bank, num_rewards, num_anchors);
    const float floor = a.min_std ? a.min_std[k] : kDefaultMinStd;
    const float scale = s.std > floor ? s.std : floor;
    mean = s.mean;
    inverse = 1.0f / (kForm == Form::kBradleyTerry ? scale * a.temperature : scale);
  }
  int halves = 0;
  float bounded = 0.0f, steepness = 0.0f;
  for (int64_t m = 0; m < num_anchors; ++m) {
    const float anchor = bank[m * num_rewards];
    halves += (r > anchor ? 2 : 0) + (r == anchor ? 1 : 0);
    if (kForm == Form::kBradleyTerry) {
      const float s = 1.0f / (1.0f + expf((anchor - r) * inverse));
      bounded += s;
      steepness += fmaf(-s, s, s);
    }
  }
  const float size = static_cast<float>(num_anchors);
  if (kForm == Form::kDifference) return {(r - mean) * inverse, inverse, halves};
  if (kForm == Form::kWin) return {0.5f * static_cast<float>(halves) / size, 0.0f, halves};
  if (kForm == Form::kBradleyTerry) return {bounded / size, steepness / size * inverse, halves};
  return {r, 1.0f, halves};
}

template <Form kForm>
__global__ void __launch_bounds__(kComparisonThreads) pairwise_comparison_kernel(ComparisonArguments a) {
  __shared__ bool last;
  const int64_t num_rewards = a.shape.num_rewards;
  const int lane = static_cast<int>(threadIdx.x) % a.lanes, samples = kComparisonThreads / a.lanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * samples + threadIdx.x / a.lanes;
  float total = 0.0f;
  for (int64_t first = 0; first < num_rewards; first += a.lanes) {
    const int64_t k = first + lane;
    Compared c = {0.0f, 0.0f, 0};
    if (n < a.shape.num_samples && k < num_rewards) {
      c = compare_with_bank<kForm>(a, n, k);
      a.slope[n * num_rewards + k] = c.slope;
      total = fmaf(a.weights[k], c.value, total);
    }
    // Whole numbers: the same sum in any order. Lanes of the same reward are a.lanes apart.
    for (int offset = kWarp / 2; offset >= a.lanes; offset /= 2)
      c.halves += __shfl_xor_sync(0xffffffffu, c.halves, offset);
    if (static_cast<int>(threadIdx.x) % kWarp < a.lanes && k < num_rewards)
      atomicAdd(a.counters + 1 + k, static_cast<unsigned long long>(c.halves));
  }
  for (int offset = a.lanes / 2; offset > 0; offset /= 2)
    total += __shfl_xor_sync(0xffffffffu, total, offset);
  if (lane == 0 && n < a.shape.num_samples) a.score[n] = total;

  // The last block to end turns the counts into rates and leaves the counters at zero.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(a.counters, 1ull) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const double pairs =
      2.0 * static_cast<double>(a.shape.num_samples) * static_cast<double>(a.shape.num_anchors);
  for (int64_t k = threadIdx.x; k < num_rewards; k += kComparisonThreads) {
    volatile unsigned long long* count = a.counters + 1 + k;
    a.win_rate[k] = a.shape.num_samples > 0 ? static_cast<float>(static_cast<double>(*count) / pairs) : 0.0f;
    *count = 0;
  }
  if (threadIdx.x == 0) a.counters[0] = 0;
}

static __global__ void __launch_bounds__(kComparisonThreads)
    pairwise_comparison_backward_kernel(const float* grad_score, int64_t grad_stride, const float* weights,
                                        const float* slope, int64_t num_samples, int64_t num_rewards,
                                        float* grad_rewards) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kComparisonThreads + threadIdx.x;
  if (i >= num_samples * num_rewards) return;
  grad_rewards[i] = grad_score[i / num_rewards * grad_stride] * weights[i % num_rewards] * slope[i];
}

// First index in ascending values[0, count) that is not less than `key`, or is greater when kUpper.
template <bool kUpper>
__device__ __forceinline__ int64_t bound(const int64_t* values, int64_t count, int64_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] < key || (kUpper && values[middle] == key)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

static __global__ void __launch_bounds__(kComparisonThreads)
    group_win_rate_kernel(const float* rewards, const int64_t* prompt_of, const int64_t* order,
                          int64_t num_samples, int64_t num_rewards, float* win_rate) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kComparisonThreads + threadIdx.x;
  if (i >= num_samples * num_rewards) return;
  const int64_t n = i / num_rewards, k = i % num_rewards;
  const int64_t begin = bound<false>(prompt_of, num_samples, prompt_of[n]),
                end = bound<true>(prompt_of, num_samples, prompt_of[n]);
  const float own = rewards[i];
  int64_t halves = 0;
  for (int64_t j = begin; j < end; ++j) {
    const float other = rewards[j * num_rewards + k];
    halves += (own > other ? 2 : 0) + (own == other ? 1 : 0);
  }
  // The sample itself is among those compared with and ties: take its half away again.
  const double share =
      end - begin > 1 ? 0.5 * static_cast<double>(halves - 1) / static_cast<double>(end - begin - 1) : 0.5;
  win_rate[order[n] * num_rewards + k] = static_cast<float>(share);
}

}  // namespace cxrl
