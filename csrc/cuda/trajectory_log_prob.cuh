// Kernels of trajectory_log_prob and denoise_step. A block takes one tile of a row: every thread loads its
// elements of all tensors at once (16 bytes a load), so that enough of them are under way, and a row of
// several tiles is summed by the block that ends last, in the order of the tiles. So a row's result depends
// on the row alone.
#pragma once

#include "device.cuh"

namespace cxrl {

constexpr int kStepThreads = 256;
constexpr int kStepElements = static_cast<int>(kStepTile) / kStepThreads;  // of a thread

struct StepArguments {
  Operand cond, uncond, x_t, x_prev;  // x_prev: the noise in a step
  Operand out_cond, out_uncond;       // gradients, or x_prev of a step
  const float* table;
  const float* grad;
  int64_t table_stride, grad_stride;
  unsigned row_size, positions;  // positions: of every channel
  int tiles;
  float guidance;
  float* partial;
  unsigned* counters;
  float* log_prob;
};

struct StepCoefficients {
  float c_x, c_e, sigma, guidance;
};

// Explicit fused operations: the step and its later scoring must agree to the bit.
__device__ __forceinline__ float step_mean(float cond, float uncond, bool guided, float x_t,
                                           const StepCoefficients& s) {
  const float m = guided ? fmaf(s.guidance, cond - uncond, uncond) : cond;
  return fmaf(s.c_e, m, s.c_x * x_t);
}

__device__ __forceinline__ float log_density(float mean_square, float sigma) {
  constexpr float kHalfLogTwoPi = 0.918938533204672742f;
  return sigma > 0.0f ? -0.5f * mean_square / (sigma * sigma) - logf(sigma) - kHalfLogTwoPi : not_a_number();
}

// Where element `i` of a row lies, in elements from the row's start.
__device__ __forceinline__ unsigned place(const Operand& t, unsigned positions, unsigned i) {
  return t.channels == 0 ? i : i % positions * static_cast<unsigned>(t.channels) + i / positions;
}

template <typename T>
__device__ __forceinline__ T* row_start(const Operand& t, int64_t row) {
  return reinterpret_cast<T*>(t.data) + row * t.row_stride;
}

// kCount elements from `first` on; what is past the row reads as 0. kVector: rows start on 16 bytes and are
// flat.
template <typename T, int kCount, bool kVector>
__device__ __forceinline__ void load_group(const StepArguments& a, const Operand& t, int64_t row,
                                           unsigned first, float (&out)[kCount]) {
  const T* data = row_start<T>(t, row);
  constexpr int kPerLoad = 16 / static_cast<int>(sizeof(T));
  if (kVector && first + kCount <= a.row_size) {
#pragma unroll
    for (int part = 0; part < kCount / kPerLoad; ++part) {
      const Words4 words = *reinterpret_cast<const Words4*>(data + first + part * kPerLoad);
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) {
        if constexpr (sizeof(T) == 4) {
          out[part * 4 + i] = __uint_as_float(words.word[i]);
        } else {
          out[part * 8 + i] = to_float(T{static_cast<uint16_t>(words.word[i / 2] >> (i % 2 * 16))});
        }
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (first + i < a.row_size)
      out[i] = to_float(data[kVector ? first + i : place(t, a.positions, first + i)]);
  }
}

template <typename T, int kCount, bool kVector>
__device__ __forceinline__ void store_group(const StepArguments& a, const Operand& t, int64_t row,
                                            unsigned first, const float (&values)[kCount]) {
  T* data = row_start<T>(t, row);
  constexpr int kPerLoad = 16 / static_cast<int>(sizeof(T));
  if (kVector && first + kCount <= a.row_size) {
#pragma unroll
    for (int part = 0; part < kCount / kPerLoad; ++part) {
      Words4 words;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
          words.word[i] = __float_as_uint(values[part * 4 + i]);
        } else {
          words.word[i] = pack<T>(values[part * 8 + 2 * i], values[part * 8 + 2 * i + 1]);
        }
      }
      *reinterpret_cast<Words4*>(data + first + part * kPerLoad) = words;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (first + i < a.row_size)
      data[kVector ? first + i : place(t, a.positions, first + i)] = from_float<T>(values[i]);
  }
}

// Elements of one thread that lie side by side: one load of the network's outputs.
template <typename T>
struct StepGroup {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T)), kCount = kStepElements / kSize;
  float cond[kSize], uncond[kSize], x_t[kSize], other[kSize];

  template <bool kVector>
  __device__ __forceinline__ void load(const StepArguments& a, int64_t row, unsigned first) {
    load_group<T, kSize, kVector>(a, a.cond, row, first, cond);
    load_group<float, kSize, kVector>(a, a.x_t, row, first, x_t);
    load_group<float, kSize, kVector>(a, a.x_prev, row, first, other);
    if (a.uncond.data != nullptr) {
      load_group<T, kSize, kVector>(a, a.uncond, row, first, uncond);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) uncond[i] = 0.0f;
    }
  }
};

// Calls body(first element, group) for the groups of this thread, in the same order on both ways. Vectors are
// all under way before the first is used; elements one at a time are the slow way for odd sizes and mixed
// layouts.
template <typename T, bool kVector, typename Body>
__device__ __forceinline__ void for_groups(const StepArguments& a, int64_t row, int tile, Body body) {
  using Group = StepGroup<T>;
  const auto first = [&](int g) {
    return static_cast<unsigned>(tile) * static_cast<unsigned>(kStepTile) +
           (static_cast<unsigned>(g) * kStepThreads + threadIdx.x) * Group::kSize;
  };
  if constexpr (kVector) {
    Group groups[Group::kCount];
#pragma unroll
    for (int g = 0; g < Group::kCount; ++g) groups[g].template load<true>(a, row, first(g));
#pragma unroll
    for (int g = 0; g < Group::kCount; ++g) body(first(g), groups[g]);
  } else {
#pragma unroll 1
    for (int g = 0; g < Group::kCount; ++g) {
      Group group;
      group.template load<false>(a, row, first(g));
      body(first(g), group);
    }
  }
}

__device__ __forceinline__ StepCoefficients coefficients(const StepArguments& a, int64_t row) {
  const float* r = a.table + row * a.table_stride;
  return {r[0], r[1], r[2], a.guidance};
}

// The row's log-probability from the squares of its tiles. Every thread of the block calls it.
__device__ __forceinline__ void finish_row(const StepArguments& a, int64_t row, int tile, float square,
                                           float sigma, bool deterministic_is_zero) {
  __shared__ float scratch[kStepThreads / kWarp];
  const float tile_sum = block_sum<kStepThreads>(square, scratch);
  if (threadIdx.x != 0) return;
  float mean = 0.0f;
  if (a.tiles == 1) {
    mean = a.row_size > 0 ? tile_sum / static_cast<float>(a.row_size) : not_a_number();
  } else {
    volatile float* partial = a.partial + row * a.tiles;
    partial[tile] = tile_sum;
    __threadfence();
    if (atomicAdd(a.counters + row, 1u) != static_cast<unsigned>(a.tiles - 1)) return;
    __threadfence();
    double total = 0.0;
    for (int i = 0; i < a.tiles; ++i) total += static_cast<double>(partial[i]);
    a.counters[row] = 0;
    mean = static_cast<float>(total / static_cast<double>(a.row_size));
  }
  a.log_prob[row] = deterministic_is_zero && sigma == 0.0f ? 0.0f : log_density(mean, sigma);
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kStepThreads) trajectory_log_prob_kernel(StepArguments a) {
  const int64_t row = blockIdx.x / a.tiles;
  const int tile = static_cast<int>(blockIdx.x % a.tiles);
  const StepCoefficients s = coefficients(a, row);
  const bool guided = a.uncond.data != nullptr;
  float square = 0.0f;
  for_groups<T, kVector>(a, row, tile, [&](unsigned, const StepGroup<T>& g) {
#pragma unroll
    for (int i = 0; i < g.kSize; ++i) {
      // What is past the row reads as 0 throughout, and so adds nothing.
      const float d = g.other[i] - step_mean(g.cond[i], g.uncond[i], guided, g.x_t[i], s);
      square = fmaf(d, d, square);
    }
  });
  finish_row(a, row, tile, square, s.sigma, false);
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kStepThreads) denoise_step_kernel(StepArguments a) {
  const int64_t row = blockIdx.x / a.tiles;
  const int tile = static_cast<int>(blockIdx.x % a.tiles);
  const StepCoefficients s = coefficients(a, row);
  const bool guided = a.uncond.data != nullptr;
  float square = 0.0f;
  for_groups<T, kVector>(a, row, tile, [&](unsigned first, const StepGroup<T>& g) {
    float x_prev[StepGroup<T>::kSize];
#pragma unroll
    for (int i = 0; i < g.kSize; ++i) {
      const float mean = step_mean(g.cond[i], g.uncond[i], guided, g.x_t[i], s);
      x_prev[i] = fmaf(s.sigma, g.other[i], mean);
      const float d = x_prev[i] - mean;  // of what is stored, as it will be scored again
      square = fmaf(d, d, square);
    }
    store_group<float, StepGroup<T>::kSize, kVector>(a, a.out_cond, row, first, x_prev);
  });
  finish_row(a, row, tile, square, s.sigma, true);
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kStepThreads) trajectory_log_prob_backward_kernel(StepArguments a) {
  const int64_t row = blockIdx.x / a.tiles;
  const int tile = static_cast<int>(blockIdx.x % a.tiles);
  const StepCoefficients s = coefficients(a, row);
  const bool guided = a.uncond.data != nullptr;
  const float variance = s.sigma * s.sigma * static_cast<float>(a.row_size);
  const float factor = s.sigma > 0.0f ? a.grad[row * a.grad_stride] * s.c_e / variance : not_a_number();
  const float to_cond = guided ? factor * s.guidance : factor, to_uncond = factor * (1.0f - s.guidance);
  for_groups<T, kVector>(a, row, tile, [&](unsigned first, const StepGroup<T>& g) {
    float grad_cond[StepGroup<T>::kSize], grad_uncond[StepGroup<T>::kSize];
#pragma unroll
    for (int i = 0; i < g.kSize; ++i) {
      const float d = g.other[i] - step_mean(g.cond[i], g.uncond[i], guided, g.x_t[i], s);
      grad_cond[i] = to_cond * d;
      grad_uncond[i] = to_uncond * d;
    }
    store_group<T, StepGroup<T>::kSize, kVector>(a, a.out_cond, row, first, grad_cond);
    if (guided) store_group<T, StepGroup<T>::kSize, kVector>(a, a.out_uncond, row, first, grad_uncond);
  });
}

}  // namespace cxrl
