// Kernels of attention. Forward and gradient of the queries: a block owns rows of queries and goes through
// all keys, those of the prompt and then of the extra segment, which stay in shared memory where they fit.
// Gradients of keys and values: a block owns keys and goes through a share of the queries of one batch row;
// its sums go to `parts`, and the last kernel adds them up in a fixed order, over the rows that share keys as
// well. No floating-point atomics.
#pragma once

#include "attention_tile.cuh"

namespace cxrl {

struct AttentionArguments {
  Rows q, k, v, extra_k, extra_v, out, grad_out;
  Rows grad_q, grad_k, grad_v, grad_extra_k, grad_extra_v;
  const int64_t* kv_index;
  float scale;
  int64_t batch, heads, kv_batch;
  int queries, keys, extra_keys, dim;
  int chunks, chunk_rows;  // of the queries
  int key_tiles, splits;   // of a batch row's keys, and of its queries
  bool keys_vector, shared_extra;
  float* log_sum_exp;
  float* delta;
  float* parts;
};

template <typename T, int kDim_>
struct ForwardTiling : Tile<T, kDim_> {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = 4, kRows = kWarps * 16;
  static constexpr int kTile = sizeof(T) == 2 ? (kDim <= 80 ? 96 : 64) : (kDim <= 80 ? 32 : 16);
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr size_t kSharedBytes = (kRows + 2 * kTile) * Tile<T, kDim>::kStride * sizeof(T) +
                                         kWarps * Tile<T, kDim>::kExchange * sizeof(float);
};

template <typename T, int kDim_>
struct QueryGradTiling : Tile<T, kDim_> {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = sizeof(T) == 2 || kDim <= 80 ? 4 : 2;
  static constexpr int kRows = kWarps * 16;
  static constexpr int kTile = sizeof(T) == 2 ? (kDim <= 80 ? 96 : 32) : 16;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr size_t kSharedBytes = 2 * (kRows + kTile) * Tile<T, kDim>::kStride * sizeof(T) +
                                         kWarps * Tile<T, kDim>::kExchange * sizeof(float);
};

template <typename T, int kDim_>
struct KeyGradTiling : Tile<T, kDim_> {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = sizeof(T) == 2 || kDim <= 80 ? 6 : 2;
  static constexpr int kRows = kWarps * 16;
  static constexpr int kTile = sizeof(T) == 2 ? 32 : 16;
  static constexpr int kThreads = kWarps * kWarp;
  // Both gradients in registers take as many as the head has dimensions: wide heads are done in two halves.
  static constexpr int kSlices = kDim <= 80 ? 1 : 2, kSlice = kDim / kSlices;
  static constexpr size_t kSharedBytes = 2 * (kRows + kTile) * Tile<T, kDim>::kStride * sizeof(T) +
                                         (2 * kTile + kWarps * Tile<T, kDim>::kExchange) * sizeof(float);
};

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int whole(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Row of k and v for batch row b, or -1: nobody has looked at the index, a wrong one must not be followed.
__device__ __forceinline__ int64_t key_row(const AttentionArguments& a, int64_t b) {
  if (a.kv_index == nullptr) return b;
  const int64_t kv = a.kv_index[b];
  return kv >= 0 && kv < a.kv_batch ? kv : -1;
}

// Keys and values first .. first + count of the two segments together.
template <typename S, typename T>
__device__ __forceinline__ void load_keys(const AttentionArguments& a, int64_t b, int64_t h, int64_t kv,
                                          int first, int count, int rows, T* keys, T* values) {
  const bool extra = a.extra_keys > 0;
  const int valid = kv < 0 ? 0 : count;
  const int64_t row = kv < 0 ? 0 : kv;
  load_rows<T, S::kDim, S::kThreads>(keys, row_of<T>(a.k, row, h, 0), a.k.row_stride, a.keys,
                                     extra ? row_of<T>(a.extra_k, b, h, 0) : nullptr, a.extra_k.row_stride,
                                     first, valid, rows, a.dim, a.keys_vector);
  load_rows<T, S::kDim, S::kThreads>(values, row_of<T>(a.v, row, h, 0), a.v.row_stride, a.keys,
                                     extra ? row_of<T>(a.extra_v, b, h, 0) : nullptr, a.extra_v.row_stride,
                                     first, valid, rows, a.dim, a.keys_vector);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(ForwardTiling<T, kDim>::kThreads, 1)
    attention_kernel(AttentionArguments a) {
  using S = ForwardTiling<T, kDim>;
  T* q = reinterpret_cast<T*>(dynamic_shared());
  T* k = q + S::kRows * S::kStride;
  T* v = k + S::kTile * S::kStride;
  float* exchange = reinterpret_cast<float*>(v + S::kTile * S::kStride) + warp_id() * S::kExchange;
  const int64_t b = blockIdx.x / a.chunks / a.heads, h = blockIdx.x / a.chunks % a.heads, kv = key_row(a, b);
  const int begin = static_cast<int>(blockIdx.x % a.chunks) * a.chunk_rows;
  const int end = smaller(a.queries, begin + a.chunk_rows), total = a.keys + a.extra_keys;
  const float scale = a.scale * kLog2E;
  const int lane = lane_id(), own = warp_id() * 16;
  for (int first = begin; first < end; first += S::kRows) {
    const int count = smaller(S::kRows, end - first);
    __syncthreads();  // all have done with the queries (and keys) before
    load_rows<T, kDim, S::kThreads>(q, a.q, b, h, first, count, S::kRows, a.dim);
    float sum[kDim / 8][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, denominator[2] = {0.0f, 0.0f};
    for (int tile = 0; tile < total; tile += S::kTile) {
      const int columns = smaller(S::kTile, total - tile);
      if (first == begin || total > S::kTile) {
        if (tile > 0) __syncthreads();
        load_keys<S>(a, b, h, kv, tile, columns, whole(columns, S::kStep), k, v);
      }
      __syncthreads();
      if (own >= count) continue;
#pragma unroll 1
      for (int step = 0; step < columns; step += S::kStep) {
        float s[S::kStepTiles][4] = {};
        product_nt<T, kDim, S::kStepTiles>(s, q + own * S::kStride, k + step * S::kStride);
        const int valid = columns - step - lane % 4 * 2;  // of this lane's columns: t * 8 + c < valid
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float largest = -INFINITY;
#pragma unroll
          for (int t = 0; t < S::kStepTiles; ++t) {
#pragma unroll
            for (int c = 0; c < 2; ++c)
              if (t * 8 + c < valid) largest = fmaxf(largest, s[t][2 * r + c] * scale);
          }
          largest = fmaxf(top[r], row_max(largest));
          const float keep = exp2f(top[r] - largest);
          top[r] = largest;
          denominator[r] *= keep;
#pragma unroll
          for (int t = 0; t < kDim / 8; ++t) sum[t][2 * r] *= keep, sum[t][2 * r + 1] *= keep;
#pragma unroll
          for (int t = 0; t < S::kStepTiles; ++t) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const float p = t * 8 + c < valid ? exp2f(fmaf(s[t][2 * r + c], scale, -largest)) : 0.0f;
              s[t][2 * r + c] = p;
              denominator[r] += p;
            }
          }
        }
        product_nn<T, kDim, kDim / 8>(sum, s, v + step * S::kStride, exchange);
      }
    }
    if (own >= count) continue;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float whole_row = row_sum(denominator[r]);
      factor[r] = kv < 0 ? not_a_number() : 1.0f / whole_row;
      const int n = own + lane / 4 + r * 8;
      if (n < count && lane % 4 == 0)
        a.log_sum_exp[(b * a.heads + h) * a.queries + first + n] =
            kv < 0 ? not_a_number() : (top[r] + log2f(whole_row)) * kLn2;
    }
    store_rows<T, kDim>(sum, factor, q + own * S::kStride, a.out, b, h, first + own, count - own, a.dim);
  }
}

// grad_out · out of the lane's two rows.
template <typename T, int kDim>
__device__ __forceinline__ float row_delta(const AttentionArguments& a, const T* grad, int64_t b, int64_t h,
                                           int n) {
  using S = Tile<T, kDim>;
  const T* out = row_of<T>(a.out, b, h, n);
  float total = 0.0f;
#pragma unroll 2
  for (int d = lane_id() % 4 * S::kPerLoad; d < a.dim; d += 4 * S::kPerLoad) {
    if (a.out.vector) {
      const Words4 words = *reinterpret_cast<const Words4*>(out + d);
#pragma unroll
      for (int e = 0; e < S::kPerLoad; ++e) {
        float value;
        if constexpr (S::kHalf) {
          value = to_float(T{static_cast<uint16_t>(words.word[e / 2] >> (e % 2 * 16))});
        } else {
          value = __uint_as_float(words.word[e]);
        }
        total = fmaf(value, to_float(grad[d + e]), total);
      }
    } else {
#pragma unroll 1
      for (int e = 0; e < S::kPerLoad && d + e < a.dim; ++e)
        total = fmaf(to_float(out[d + e]), to_float(grad[d + e]), total);
    }
  }
  return total;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(QueryGradTiling<T, kDim>::kThreads, 1)
    attention_query_grad_kernel(AttentionArguments a) {
  using S = QueryGradTiling<T, kDim>;
  T* q = reinterpret_cast<T*>(dynamic_shared());
  T* grad = q + S::kRows * S::kStride;
  T* k = grad + S::kRows * S::kStride;
  T* v = k + S::kTile * S::kStride;
  float* exchange = reinterpret_cast<float*>(v + S::kTile * S::kStride) + warp_id() * S::kExchange;
  const int64_t b = blockIdx.x / a.chunks / a.heads, h = blockIdx.x / a.chunks % a.heads, kv = key_row(a, b);
  const int begin = static_cast<int>(blockIdx.x % a.chunks) * a.chunk_rows;
  const int end = smaller(a.queries, begin + a.chunk_rows), total = a.keys + a.extra_keys;
  const float scale = a.scale * kLog2E;
  const int lane = lane_id(), own = warp_id() * 16;
  for (int first = begin; first < end; first += S::kRows) {
    const int count = smaller(S::kRows, end - first);
    __syncthreads();  // all have done with the queries (and keys) before
    load_rows<T, kDim, S::kThreads>(q, a.q, b, h, first, count, S::kRows, a.dim);
    load_rows<T, kDim, S::kThreads>(grad, a.grad_out, b, h, first, count, S::kRows, a.dim);
    __syncthreads();
    float log_sum_exp[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = own + lane / 4 + r * 8;
      const int64_t at = (b * a.heads + h) * a.queries + first + n;
      if (n < count) {
        log_sum_exp[r] = a.log_sum_exp[at] * kLog2E;
        delta[r] = row_delta<T, kDim>(a, grad + n * S::kStride, b, h, first + n);
      }
      delta[r] = row_sum(delta[r]);
      if (n < count && lane % 4 == 0) a.delta[at] = delta[r];
    }
    float sum[kDim / 8][4] = {};
    for (int tile = 0; tile < total; tile += S::kTile) {
      const int columns = smaller(S::kTile, total - tile);
      if (first == begin || total > S::kTile) {
        if (tile > 0) __syncthreads();
        load_keys<S>(a, b, h, kv, tile, columns, whole(columns, S::kStep), k, v);
      }
      __syncthreads();
      if (own >= count) continue;
#pragma unroll 1
      for (int step = 0; step < columns; step += S::kStep) {
        float s[S::kStepTiles][4] = {}, dp[S::kStepTiles][4] = {};
        product_nt<T, kDim, S::kStepTiles>(s, q + own * S::kStride, k + step * S::kStride);
        product_nt<T, kDim, S::kStepTiles>(dp, grad + own * S::kStride, v + step * S::kStride);
        const int valid = columns - step - lane % 4 * 2;
#pragma unroll
        for (int t = 0; t < S::kStepTiles; ++t) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float p = t * 8 + c % 2 < valid ? exp2f(fmaf(s[t][c], scale, -log_sum_exp[c / 2])) : 0.0f;
            s[t][c] = p * (dp[t][c] - delta[c / 2]);
          }
        }
        product_nn<T, kDim, kDim / 8>(sum, s, k + step * S::kStride, exchange);
      }
    }
    if (own >= count) continue;
    const float factor = kv < 0 ? not_a_number() : a.scale;
    store_rows<T, kDim>(sum, {factor, factor}, q + own * S::kStride, a.grad_q, b, h, first + own, count - own,
                        a.dim);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(KeyGradTiling<T, kDim>::kThreads, 1)
    attention_key_grad_kernel(AttentionArguments a) {
  using S = KeyGradTiling<T, kDim>;
  T* k = reinterpret_cast<T*>(dynamic_shared());
  T* v = k + S::kRows * S::kStride;
  T* q = v + S::kRows * S::kStride;
  T* grad = q + S::kTile * S::kStride;
  float* log_sum_exp = reinterpret_cast<float*>(grad + S::kTile * S::kStride);
  float* delta = log_sum_exp + S::kTile;
  float* exchange = delta + S::kTile + warp_id() * S::kExchange;
  int64_t unit = blockIdx.x;
  const int slice = static_cast<int>(unit % S::kSlices) * S::kSlice;
  unit /= S::kSlices;
  const int first_key = static_cast<int>(unit % a.key_tiles) * S::kRows;
  unit /= a.key_tiles;
  const int split = static_cast<int>(unit % a.splits);
  unit /= a.splits;
  const int64_t b = unit / a.heads, h = unit % a.heads, kv = key_row(a, b);
  const int total = a.keys + a.extra_keys, count = smaller(S::kRows, total - first_key);
  const int share = whole((a.queries + a.splits - 1) / a.splits, S::kTile);
  const int begin = split * share, end = smaller(a.queries, begin + share);
  const float scale = a.scale * kLog2E;
  const int lane = lane_id(), own = warp_id() * 16;
  load_keys<S>(a, b, h, kv, first_key, count, S::kRows, k, v);
  float grad_k[S::kSlice / 8][4] = {}, grad_v[S::kSlice / 8][4] = {};
  for (int first = begin; first < end; first += S::kTile) {
    const int columns = smaller(S::kTile, end - first);
    __syncthreads();
    load_rows<T, kDim, S::kThreads>(q, a.q, b, h, first, columns, S::kTile, a.dim);
    load_rows<T, kDim, S::kThreads>(grad, a.grad_out, b, h, first, columns, S::kTile, a.dim);
    for (int i = static_cast<int>(threadIdx.x); i < S::kTile; i += S::kThreads) {
      const int64_t at = (b * a.heads + h) * a.queries + first + i;
      log_sum_exp[i] = i < columns ? a.log_sum_exp[at] * kLog2E : 0.0f;
      delta[i] = i < columns ? a.delta[at] : 0.0f;
    }
    __syncthreads();
    if (own >= count) continue;
#pragma unroll 1
    for (int step = 0; step < columns; step += S::kStep) {
      float s[S::kStepTiles][4] = {}, dp[S::kStepTiles][4] = {};
      product_nt<T, kDim, S::kStepTiles>(s, k + own * S::kStride, q + step * S::kStride);
      product_nt<T, kDim, S::kStepTiles>(dp, v + own * S::kStride, grad + step * S::kStride);
#pragma unroll
      for (int t = 0; t < S::kStepTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int column = step + t * 8 + lane % 4 * 2 + c % 2;
          s[t][c] = column < columns ? exp2f(fmaf(s[t][c], scale, -log_sum_exp[column])) : 0.0f;
          dp[t][c] = s[t][c] * (dp[t][c] - delta[column]);
        }
      }
      product_nn<T, kDim, S::kSlice / 8>(grad_v, s, grad + step * S::kStride + slice, exchange);
      product_nn<T, kDim, S::kSlice / 8>(grad_k, dp, q + step * S::kStride + slice, exchange);
    }
  }
#pragma unroll
  for (int t = 0; t < S::kSlice / 8; ++t) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int j = own + lane / 4 + c / 2 * 8, d = slice + t * 8 + lane % 4 * 2 + c % 2;
      if (j >= count || d >= a.dim) continue;
      const int64_t row = ((b * a.splits + split) * a.heads + h) * total + first_key + j;
      a.parts[2 * row * a.dim + d] = grad_k[t][c] * a.scale;
      a.parts[(2 * row + 1) * a.dim + d] = grad_v[t][c];
    }
  }
}

// Adds up the parts of one element of the gradients of k and v, or of extra_k and extra_v.
template <typename T>
__global__ void __launch_bounds__(256) attention_sum_parts_kernel(AttentionArguments a) {
  const int64_t of_keys = a.kv_batch * a.heads * a.keys * a.dim;
  const int64_t of_extra = (a.shared_extra ? 1 : a.batch) * a.heads * a.extra_keys * a.dim;
  int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= of_keys + of_extra) return;
  const bool extra = i >= of_keys;
  i -= extra ? of_keys : 0;
  const int64_t count = extra ? a.extra_keys : a.keys, total = a.keys + a.extra_keys;
  const int64_t d = i % a.dim, j = i / a.dim % count, h = i / a.dim / count % a.heads,
                row = i / a.dim / count / a.heads;
  const bool all = extra && a.shared_extra, search = !extra && a.kv_index != nullptr;
  float grad_k = 0.0f, grad_v = 0.0f;
  for (int64_t b = all || search ? 0 : row; b < (all || search ? a.batch : row + 1); ++b) {
    if (search && a.kv_index[b] != row) continue;
    for (int64_t split = 0; split < a.splits; ++split) {
      const int64_t part = ((b * a.splits + split) * a.heads + h) * total + j + (extra ? a.keys : 0);
      grad_k += a.parts[2 * part * a.dim + d];
      grad_v += a.parts[(2 * part + 1) * a.dim + d];
    }
  }
  row_of<T>(extra ? a.grad_extra_k : a.grad_k, row, h, j)[d] = from_float<T>(grad_k);
  row_of<T>(extra ? a.grad_extra_v : a.grad_v, row, h, j)[d] = from_float<T>(grad_v);
}

}  // namespace cxrl
