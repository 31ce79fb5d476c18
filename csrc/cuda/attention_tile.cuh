// Products of small tiles, a warp at a time: 16 rows against a few columns, results spread over the lanes as
// the tensor cores leave them: lane l has rows l/4 and l/4 + 8, of every 8 columns 2(l%4) and the next. Half
// precision goes through mma.m16n8k16, float32 through plain fused multiply-adds with the same spread.
// Operands lie in shared memory, rows padded by 16 bytes so that neighbouring rows start in different banks.
#pragma once

#include "device.cuh"

namespace cxrl {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

template <typename T, int kDim>
struct Tile {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kPerLoad = 16 / static_cast<int>(sizeof(T));
  static constexpr int kStride = kDim + kPerLoad;              // elements between rows in shared memory
  static constexpr int kStep = kHalf && kDim <= 80 ? 32 : 16;  // columns that are under way at once
  static constexpr int kStepTiles = kStep / 8;
  static constexpr int kExchange =
      kHalf ? 0 : 16 * (kStep + 1);  // floats of scratch that a warp's products take
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// A [batch, heads, rows, D] tensor on the device. `vector`: every row starts on 16 bytes and D is whole
// loads.
struct Rows {
  char* data;
  int64_t batch_stride, head_stride, row_stride;
  bool vector;
};

template <typename T>
__device__ __forceinline__ T* row_of(const Rows& t, int64_t b, int64_t h, int64_t n) {
  return reinterpret_cast<T*>(t.data) + b * t.batch_stride + h * t.head_stride + n * t.row_stride;
}

// Rows first .. first + count of `main` (and, past its num_main rows, of `extra`) to shared memory; columns
// past dim and rows up to `rows` become 0.
template <typename T, int kDim, int kThreads>
__device__ __forceinline__ void load_rows(T* shared, const T* main, int64_t main_stride, int num_main,
                                          const T* extra, int64_t extra_stride, int first, int count,
                                          int rows, int dim, bool vector) {
  using S = Tile<T, kDim>;
  constexpr int kLoads = kDim / S::kPerLoad;
  if (vector) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < rows * kLoads; i += kThreads) {
      const int r = i / kLoads, d = i % kLoads * S::kPerLoad, j = first + r;
      Words4 words = {};
      if (r < count && d < dim) {
        const T* source = j < num_main ? main + j * main_stride : extra + (j - num_main) * extra_stride;
        words = *reinterpret_cast<const Words4*>(source + d);
      }
      *reinterpret_cast<Words4*>(shared + r * S::kStride + d) = words;
    }
    return;
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * kDim; i += kThreads) {
    const int r = i / kDim, d = i % kDim, j = first + r;
    T value = {};
    if (r < count && d < dim)
      value = j < num_main ? main[j * main_stride + d] : extra[(j - num_main) * extra_stride + d];
    shared[r * S::kStride + d] = value;
  }
}

template <typename T, int kDim, int kThreads>
__device__ __forceinline__ void load_rows(T* shared, const Rows& t, int64_t b, int64_t h, int first,
                                          int count, int rows, int dim) {
  load_rows<T, kDim, kThreads>(shared, row_of<T>(t, b, h, 0), t.row_stride, 0x7fffffff,
                               static_cast<const T*>(nullptr), 0, first, count, rows, dim, t.vector);
}

// out (16 × 8 kTiles) += a (16 rows) · b (8 kTiles rows)ᵀ
template <typename T, int kDim, int kTiles>
__device__ __forceinline__ void product_nt(float (&out)[kTiles][4], const T* a, const T* b) {
  using S = Tile<T, kDim>;
  const int lane = lane_id();
  if constexpr (S::kHalf) {
    const T* left = a + lane % 16 * S::kStride + lane / 16 * 8;
    const T* right = b + (lane / 16 * 8 + lane % 8) * S::kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t fa[4];
      load_matrices<false>(fa, left + d);
#pragma unroll
      for (int t = 0; t < kTiles / 2; ++t) {
        uint32_t fb[4];
        load_matrices<false>(fb, right + t * 16 * S::kStride + d);
        mma_16x8x16(out[2 * t], fa, {fb[0], fb[1]}, T{});
        mma_16x8x16(out[2 * t + 1], fa, {fb[2], fb[3]}, T{});
      }
    }
  } else {
    const T* left = a + lane / 4 * S::kStride;
    const T* right = b + lane % 4 * 2 * S::kStride;
#pragma unroll 2
    for (int d = 0; d < kDim; d += 4) {
      const Words4 upper = *reinterpret_cast<const Words4*>(left + d);
      const Words4 lower = *reinterpret_cast<const Words4*>(left + 8 * S::kStride + d);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const Words4 column = *reinterpret_cast<const Words4*>(right + (t * 8 + c) * S::kStride + d);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float v = __uint_as_float(column.word[e]);
            out[t][c] = fmaf(__uint_as_float(upper.word[e]), v, out[t][c]);
            out[t][2 + c] = fmaf(__uint_as_float(lower.word[e]), v, out[t][2 + c]);
          }
        }
      }
    }
  }
}

// out (16 × 8 kTiles) += p (16 × kStep, as a product leaves it) · b (kStep rows, columns from b on).
// `exchange` is the warp's own scratch of Tile::kExchange.
template <typename T, int kDim, int kTiles>
__device__ __forceinline__ void product_nn(float (&out)[kTiles][4],
                                           const float (&p)[Tile<T, kDim>::kStepTiles][4], const T* b,
                                           float* exchange) {
  using S = Tile<T, kDim>;
  const int lane = lane_id();
  if constexpr (S::kHalf) {
    const T* right = b + (lane / 8 % 2 * 8 + lane % 8) * S::kStride + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < S::kStepTiles / 2; ++j) {
      const uint32_t fa[4] = {pack<T>(p[2 * j][0], p[2 * j][1]), pack<T>(p[2 * j][2], p[2 * j][3]),
                              pack<T>(p[2 * j + 1][0], p[2 * j + 1][1]),
                              pack<T>(p[2 * j + 1][2], p[2 * j + 1][3])};
#pragma unroll
      for (int t = 0; t < kTiles / 2; ++t) {
        uint32_t fb[4];
        load_matrices<true>(fb, right + j * 16 * S::kStride + t * 16);
        mma_16x8x16(out[2 * t], fa, {fb[0], fb[1]}, T{});
        mma_16x8x16(out[2 * t + 1], fa, {fb[2], fb[3]}, T{});
      }
    }
  } else {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < S::kStepTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        exchange[(lane / 4 + c / 2 * 8) * (S::kStep + 1) + t * 8 + lane % 4 * 2 + c % 2] = p[t][c];
    }
    __syncwarp();
    const T* right = b + lane % 4 * 2;
    const float* left = exchange + lane / 4 * (S::kStep + 1);
#pragma unroll 2
    for (int j = 0; j < S::kStep; ++j) {
      const float upper = left[j], lower = left[8 * (S::kStep + 1) + j];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float v = right[j * S::kStride + t * 8 + c];
          out[t][c] = fmaf(upper, v, out[t][c]);
          out[t][2 + c] = fmaf(lower, v, out[t][2 + c]);
        }
      }
    }
  }
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// The warp's 16 rows, times `factor` of each, to rows first .. of t, by way of `own`: its 16 rows in shared
// memory, which no other warp reads.
template <typename T, int kDim>
__device__ __forceinline__ void store_rows(const float (&values)[kDim / 8][4], const float (&factor)[2],
                                           T* own, const Rows& t, int64_t b, int64_t h, int first, int count,
                                           int dim) {
  using S = Tile<T, kDim>;
  const int lane = lane_id();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      own[(lane / 4 + c / 2 * 8) * S::kStride + i * 8 + lane % 4 * 2 + c % 2] =
          from_float<T>(values[i][c] * factor[c / 2]);
  }
  __syncwarp();
  constexpr int kLoads = kDim / S::kPerLoad;
#pragma unroll 2
  for (int i = lane; i < 16 * kLoads; i += kWarp) {
    const int r = i / kLoads, d = i % kLoads * S::kPerLoad;
    if (r >= count || d >= dim) continue;
    T* target = row_of<T>(t, b, h, first + r) + d;
    const T* source = own + r * S::kStride + d;
    if (t.vector) {
      *reinterpret_cast<Words4*>(target) = *reinterpret_cast<const Words4*>(source);
    } else {
#pragma unroll 1
      for (int e = 0; e < S::kPerLoad && d + e < dim; ++e) target[e] = source[e];
    }
  }
  __syncwarp();
}

}  // namespace cxrl
