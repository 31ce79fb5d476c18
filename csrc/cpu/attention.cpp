// attention: for every head the keys and values (and the extra segment, behind them) are packed into a
// scratch that stays in cache, then blocks of queries run through two small products with a softmax between.
// Made for cross-attention, where the keys are few; correct for any number. The formulas are in
// cxrl/ops/attention.py.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../common/parallel.h"
#include "../common/scratch.h"
#include "ops.h"

namespace cxrl {
namespace {

constexpr int64_t kQueryBlock = 64;
static_assert(kQueryBlock <= kMaxRows, "softmax_rows takes a block at once");

enum Slot {
  kKeys,
  kKeysT,
  kValues,
  kValuesT,
  kGradKeys,
  kGradValues,
  kScores,
  kGradScores,
  kQuery,
  kGrad,
  kResult
};
using UnitScratch = Scratch<kResult + 1>;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void load_rows(const AttentionView& view, int64_t b, int64_t h, int64_t first, int64_t count, int64_t dim,
               float* dst, int64_t dst_row) {
  for (int64_t n = 0; n < count; ++n)
    kernels().load(view.row(b, h, first + n), view.dtype, 1, dim, dst + n * dst_row);
}

void store_rows(const AttentionView& view, int64_t b, int64_t h, int64_t first, int64_t count, int64_t dim,
                const float* src, int64_t src_row) {
  for (int64_t n = 0; n < count; ++n)
    kernels().store(src + n * src_row, dim, view.row(b, h, first + n), view.dtype, 1);
}

// Rows as the products want them, `stride` apart and padded to whole vectors: the tensor's own memory where
// it is that already, else a converted copy.
struct Rows {
  float* data;
  int64_t stride;
};
bool usable(const AttentionView& view, int64_t dim) {
  return view.dtype == DType::kFloat32 && dim % kernels().width == 0;
}
Rows own_rows(const AttentionView& view, int64_t b, int64_t h, int64_t first) {
  return {reinterpret_cast<float*>(view.row(b, h, first)), view.row_stride};
}
Rows rows_of(const AttentionView& view, int64_t b, int64_t h, int64_t first, int64_t count, int64_t dim,
             UnitScratch& scratch, Slot slot) {
  if (usable(view, dim)) return own_rows(view, b, h, first);
  const int64_t padded = round_up(dim, kernels().width);
  float* buffer = scratch.take(slot, kQueryBlock * padded);
  if (padded != dim) std::fill_n(buffer, kQueryBlock * padded, 0.0f);
  load_rows(view, b, h, first, count, dim, buffer, padded);
  return {buffer, padded};
}

// Keys or values of one head, prompt and extra segment together: [total, padded_dim], zero padded.
struct Packed {
  int64_t total, padded_total, padded_dim;
  float *rows, *transposed;

  Packed(const AttentionShape& s, UnitScratch& scratch, Slot slot, Slot transposed_slot)
      : total(s.keys + s.extra_keys),
        padded_total(round_up(total, kernels().width)),
        padded_dim(round_up(s.dim, kernels().width)),
        rows(scratch.take(slot, total * padded_dim)),
        transposed(scratch.take(transposed_slot, s.dim * padded_total)) {
    if (padded_dim != s.dim) std::fill_n(rows, total * padded_dim, 0.0f);
  }

  void load_main(const AttentionView& view, const AttentionShape& s, int64_t b, int64_t h) {
    load_rows(view, b, h, 0, s.keys, s.dim, rows, padded_dim);
  }
  void load_extra(const AttentionView& view, const AttentionShape& s, int64_t b, int64_t h) {
    if (view) load_rows(view, b, h, 0, s.extra_keys, s.dim, rows + s.keys * padded_dim, padded_dim);
  }
  void make_transposed(const AttentionShape& s) {
    kernels().transpose(rows, total, s.dim, padded_dim, transposed, padded_total);
  }
};

void check_index(const AttentionInputs& in) {
  for (int64_t b = 0; in.kv_index && b < in.shape.batch; ++b) {
    if (in.kv_index[b] < 0 || in.kv_index[b] >= in.shape.kv_batch)
      throw std::invalid_argument("attention: kv_index[" + std::to_string(b) +
                                  "] = " + std::to_string(in.kv_index[b]) + ", expected 0 to " +
                                  std::to_string(in.shape.kv_batch - 1));
  }
}

int64_t work(const AttentionShape& s) {
  return s.batch * s.heads * s.queries * (s.keys + s.extra_keys) * s.dim / 8;
}

}  // namespace

void attention_cpu(const AttentionInputs& in, AttentionView out, Saved saved) {
  check_index(in);
  const AttentionShape& s = in.shape;
  const Kernels& kernel = kernels();
  parallel_for(s.batch * s.heads, work(s), [&](int64_t unit) {
    const int64_t b = unit / s.heads, h = unit % s.heads;
    const int64_t kv = in.kv_index ? in.kv_index[b] : b;
    UnitScratch scratch;
    Packed keys(s, scratch, kKeys, kKeysT), values(s, scratch, kValues, kValuesT);
    keys.load_main(in.k, s, kv, h);
    keys.load_extra(in.extra_k, s, b, h);
    keys.make_transposed(s);
    values.load_main(in.v, s, kv, h);
    values.load_extra(in.extra_v, s, b, h);
    const int64_t columns = keys.padded_total, width = values.padded_dim;
    const int64_t row = saved.row ? saved.row : columns;
    const bool direct = usable(out, s.dim);
    float* own_scores = scratch.take(kScores, kQueryBlock * columns);
    float* result = scratch.take(kResult, kQueryBlock * width);
    float denominators[kQueryBlock];
    for (int64_t first = 0; first < s.queries; first += kQueryBlock) {
      const int64_t count = std::min(kQueryBlock, s.queries - first);
      const Rows q = rows_of(in.q, b, h, first, count, s.dim, scratch, kQuery);
      const int64_t query_row = unit * s.queries + first;
      float* scores = saved.row ? saved.data + query_row * row : own_scores;
      kernel.product(
          {q.data, q.stride, 1, keys.transposed, columns, scores, row, count, columns, s.dim, false});
      kernel.softmax_rows(scores, count, keys.total, row, in.scale,
                          saved.row ? denominators : saved.data + query_row);
      const Rows o = direct ? own_rows(out, b, h, first) : Rows{result, width};
      kernel.product(
          {scores, row, 1, values.rows, width, o.data, o.stride, count, width, values.total, false});
      if (!direct) store_rows(out, b, h, first, count, s.dim, o.data, o.stride);
    }
  });
}

void attention_backward_cpu(const AttentionInputs& in, AttentionView grad_out, Saved saved,
                            AttentionView grad_q, AttentionView grad_k, AttentionView grad_v,
                            AttentionView grad_extra_k, AttentionView grad_extra_v) {
  check_index(in);
  const AttentionShape& s = in.shape;
  const Kernels& kernel = kernels();
  // One unit owns a row of k and v and adds up all queries that attend to it, in order: no race, and the same
  // sum whatever the number of threads. The shared extra segment gets one part from every unit, added up at
  // the end.
  std::vector<std::vector<int64_t>> members(static_cast<size_t>(s.kv_batch));
  for (int64_t b = 0; b < s.batch; ++b)
    members[static_cast<size_t>(in.kv_index ? in.kv_index[b] : b)].push_back(b);
  const bool shared_extra = grad_extra_k && grad_extra_k.batch_stride == 0;
  const int64_t padded_dim = round_up(s.dim, kernel.width), extra_size = s.extra_keys * padded_dim;
  std::vector<float> parts(static_cast<size_t>(shared_extra ? 2 * s.kv_batch * s.heads * extra_size : 0),
                           0.0f);

  parallel_for(s.kv_batch * s.heads, 3 * work(s), [&](int64_t unit) {
    const int64_t kv = unit / s.heads, h = unit % s.heads;
    UnitScratch scratch;
    Packed keys(s, scratch, kKeys, kKeysT), values(s, scratch, kValues, kValuesT);
    keys.load_main(in.k, s, kv, h);
    values.load_main(in.v, s, kv, h);
    const int64_t total = keys.total, columns = keys.padded_total, row = saved.row ? saved.row : columns;
    float* grad_keys = scratch.take(kGradKeys, total * padded_dim);
    float* grad_values = scratch.take(kGradValues, total * padded_dim);
    for (float* sums : {grad_keys, grad_values}) std::fill_n(sums, total * padded_dim, 0.0f);
    float* own_scores = scratch.take(kScores, kQueryBlock * columns);
    float* grad_scores = scratch.take(kGradScores, kQueryBlock * row);
    float* result = scratch.take(kResult, kQueryBlock * padded_dim);
    const bool direct = usable(grad_q, s.dim);
    bool packed = false;
    for (const int64_t b : members[static_cast<size_t>(kv)]) {
      if (!packed || in.extra_k.batch_stride != 0) {
        keys.load_extra(in.extra_k, s, b, h);
        values.load_extra(in.extra_v, s, b, h);
        if (!saved.row) keys.make_transposed(s);
        values.make_transposed(s);
        packed = true;
      }
      for (int64_t first = 0; first < s.queries; first += kQueryBlock) {
        const int64_t count = std::min(kQueryBlock, s.queries - first);
        const Rows query = rows_of(in.q, b, h, first, count, s.dim, scratch, kQuery);
        const Rows grad = rows_of(grad_out, b, h, first, count, s.dim, scratch, kGrad);
        const Rows to_query = direct ? own_rows(grad_q, b, h, first) : Rows{result, padded_dim};
        const int64_t query_row = (b * s.heads + h) * s.queries + first;
        float* probability = saved.row ? saved.data + query_row * row : own_scores;
        if (!saved.row) {
          kernel.product({query.data, query.stride, 1, keys.transposed, columns, probability, row, count,
                          columns, s.dim, false});
          kernel.probability_rows(probability, count, total, row, in.scale, saved.data + query_row);
        }
        kernel.product({grad.data, grad.stride, 1, values.transposed, columns, grad_scores, row, count,
                        columns, s.dim, false});
        kernel.softmax_grad_rows(probability, grad_scores, count, total, row, in.scale);
        kernel.product({grad_scores, row, 1, keys.rows, padded_dim, to_query.data, to_query.stride, count,
                        padded_dim, total, false});
        if (!direct) store_rows(grad_q, b, h, first, count, s.dim, to_query.data, to_query.stride);
        kernel.product({grad_scores, 1, row, query.data, query.stride, grad_keys, padded_dim, total,
                        padded_dim, count, true});
        kernel.product({probability, 1, row, grad.data, grad.stride, grad_values, padded_dim, total,
                        padded_dim, count, true});
      }
      float* extra[2] = {grad_keys + s.keys * padded_dim, grad_values + s.keys * padded_dim};
      if (!grad_extra_k || shared_extra) continue;
      store_rows(grad_extra_k, b, h, 0, s.extra_keys, s.dim, extra[0], padded_dim);
      store_rows(grad_extra_v, b, h, 0, s.extra_keys, s.dim, extra[1], padded_dim);
      for (float* part : extra) std::fill(part, part + extra_size, 0.0f);
    }
    store_rows(grad_k, kv, h, 0, s.keys, s.dim, grad_keys, padded_dim);
    store_rows(grad_v, kv, h, 0, s.keys, s.dim, grad_values, padded_dim);
    if (!shared_extra) return;
    float* part = parts.data() + 2 * unit * extra_size;
    std::copy_n(grad_keys + s.keys * padded_dim, extra_size, part);
    std::copy_n(grad_values + s.keys * padded_dim, extra_size, part + extra_size);
  });

  if (!shared_extra) return;
  std::vector<float> sum(static_cast<size_t>(2 * extra_size));
  for (int64_t h = 0; h < s.heads; ++h) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t kv = 0; kv < s.kv_batch; ++kv) {
      const float* part = parts.data() + 2 * (kv * s.heads + h) * extra_size;
      for (int64_t i = 0; i < 2 * extra_size; ++i) sum[static_cast<size_t>(i)] += part[i];
    }
    store_rows(grad_extra_k, 0, h, 0, s.extra_keys, s.dim, sum.data(), padded_dim);
    store_rows(grad_extra_v, 0, h, 0, s.extra_keys, s.dim, sum.data() + extra_size, padded_dim);
  }
}

}  // namespace cxrl
