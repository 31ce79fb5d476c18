// attention, forward and backward. The formulas are in cxrl/ops/attention.py.
#include "attention.cuh"
#include "ops.h"

namespace cxrl {
namespace {

constexpr int64_t kBlocksWanted =
    4 * 132;  // a few for every multiprocessor; a constant, so that sums are the same everywhere

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Rows rows(const AttentionView& t, const AttentionShape& s) {
  const int64_t size = item_size(t.dtype);
  const auto whole_loads = [&](int64_t stride) { return stride * size % 16 == 0; };
  const bool vector = t && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && whole_loads(s.dim) &&
                      whole_loads(t.row_stride) && whole_loads(t.head_stride) && whole_loads(t.batch_stride);
  return {t.data, t.batch_stride, t.head_stride, t.row_stride, vector};
}

AttentionArguments arguments(const AttentionInputs& in, AttentionView out, const float* log_sum_exp) {
  const AttentionShape& s = in.shape;
  constexpr int64_t kMost = 1 << 30;
  if (s.queries > kMost || s.keys > kMost || s.extra_keys > kMost)
    throw std::invalid_argument("attention: more than 2^30 queries or keys");
  AttentionArguments a = {};
  a.q = rows(in.q, s);
  a.k = rows(in.k, s);
  a.v = rows(in.v, s);
  a.extra_k = rows(in.extra_k, s);
  a.extra_v = rows(in.extra_v, s);
  a.out = rows(out, s);
  a.keys_vector = a.k.vector && a.v.vector && (s.extra_keys == 0 || (a.extra_k.vector && a.extra_v.vector));
  a.kv_index = in.kv_index;
  a.scale = in.scale;
  a.batch = s.batch;
  a.heads = s.heads;
  a.kv_batch = s.kv_batch;
  a.queries = static_cast<int>(s.queries);
  a.keys = static_cast<int>(s.keys);
  a.extra_keys = static_cast<int>(s.extra_keys);
  a.dim = static_cast<int>(s.dim);
  a.log_sum_exp = const_cast<float*>(log_sum_exp);
  return a;
}

// Cuts the queries into the chunks of the blocks: several tiles each where the keys stay and there are blocks
// enough.
template <typename S>
void cut_queries(AttentionArguments& a) {
  const int64_t tiles = ceil_div(a.queries, S::kRows), all = a.batch * a.heads * tiles;
  int64_t each = a.keys + a.extra_keys <= S::kTile ? all / kBlocksWanted : 1;
  each = each < 1 ? 1 : each > 8 ? 8 : each;
  a.chunk_rows = static_cast<int>(each * S::kRows);
  a.chunks = static_cast<int>(ceil_div(tiles, each));
}

template <typename T, int kDim>
int64_t splits_of(const AttentionShape& s) {
  using S = KeyGradTiling<T, kDim>;
  const int64_t blocks = s.batch * s.heads * ceil_div(s.keys + s.extra_keys, S::kRows) * S::kSlices;
  const int64_t most = ceil_div(s.queries, 4 * S::kTile),
                wanted = ceil_div(kBlocksWanted / 2, blocks ? blocks : 1);
  return most < 1 ? 1 : wanted < most ? wanted : most;
}

template <typename T, int kDim>
void forward(CudaCall call, AttentionArguments& a) {
  using S = ForwardTiling<T, kDim>;
  cut_queries<S>(a);
  launch("attention", attention_kernel<T, kDim>, grid_of("attention", a.batch * a.heads * a.chunks),
         S::kThreads, S::kSharedBytes, call.stream, a);
}

template <typename T, int kDim>
void backward(CudaCall call, AttentionArguments& a, const AttentionShape& shape) {
  const char* what = "attention_backward";
  if (a.queries > 0) {
    using S = QueryGradTiling<T, kDim>;
    cut_queries<S>(a);
    launch(what, attention_query_grad_kernel<T, kDim>, grid_of(what, a.batch * a.heads * a.chunks),
           S::kThreads, S::kSharedBytes, call.stream, a);
  }
  using S = KeyGradTiling<T, kDim>;
  a.key_tiles = static_cast<int>(ceil_div(a.keys + a.extra_keys, S::kRows));
  a.splits = static_cast<int>(splits_of<T, kDim>(shape));
  if (a.batch > 0) {
    launch(what, attention_key_grad_kernel<T, kDim>,
           grid_of(what, a.batch * a.heads * a.splits * a.key_tiles * S::kSlices), S::kThreads,
           S::kSharedBytes, call.stream, a);
  }
  const int64_t elements =
      a.heads * a.dim *
      (a.kv_batch * a.keys + (a.shared_extra ? 1 : a.batch) * static_cast<int64_t>(a.extra_keys));
  if (elements > 0)
    launch(what, attention_sum_parts_kernel<T>, grid_of(what, ceil_div(elements, 256)), 256, 0, call.stream,
           a);
}

// Calls body with the element type and the head dimension that the kernels pad to.
template <typename Body>
auto for_kernel(DType dtype, int64_t dim, Body body) {
  const auto with_type = [&](auto type) {
    if (dim > kMaxHeadDim)
      throw std::invalid_argument("attention: head dimension " + std::to_string(dim) +
                                  ", the CUDA kernels take up to " + std::to_string(kMaxHeadDim));
    if (dim <= 48) return body(type, std::integral_constant<int, 48>{});
    if (dim <= 64) return body(type, std::integral_constant<int, 64>{});
    if (dim <= 80) return body(type, std::integral_constant<int, 80>{});
    return body(type, std::integral_constant<int, 160>{});
  };
  if (dtype == DType::kFloat32) return with_type(float{});
  if (dtype == DType::kFloat16) return with_type(Half{});
  return with_type(BFloat{});
}

}  // namespace

int64_t attention_splits(const AttentionShape& shape, DType dtype) {
  return for_kernel(dtype, shape.dim, [&](auto type, auto dim) {
    return splits_of<decltype(type), decltype(dim)::value>(shape);
  });
}

void attention_cuda(CudaCall call, const AttentionInputs& in, AttentionView out, float* log_sum_exp) {
  if (in.shape.batch * in.shape.heads * in.shape.queries == 0) return;
  AttentionArguments a = arguments(in, out, log_sum_exp);
  use_device(call.device);
  for_kernel(in.q.dtype, in.shape.dim,
             [&](auto type, auto dim) { forward<decltype(type), decltype(dim)::value>(call, a); });
}

void attention_backward_cuda(CudaCall call, const AttentionInputs& in, AttentionView grad_out,
                             AttentionView out, const float* log_sum_exp, float* delta, float* parts,
                             AttentionView grad_q, AttentionView grad_k, AttentionView grad_v,
                             AttentionView grad_extra_k, AttentionView grad_extra_v) {
  const AttentionShape& s = in.shape;
  AttentionArguments a = arguments(in, out, log_sum_exp);
  a.grad_out = rows(grad_out, s);
  a.grad_q = rows(grad_q, s);
  a.grad_k = rows(grad_k, s);
  a.grad_v = rows(grad_v, s);
  a.grad_extra_k = rows(grad_extra_k, s);
  a.grad_extra_v = rows(grad_extra_v, s);
  a.shared_extra = in.extra_k.batch_stride == 0;
  a.delta = delta;
  a.parts = parts;
  if (s.heads == 0) return;
  use_device(call.device);
  for_kernel(in.q.dtype, s.dim,
             [&](auto type, auto dim) { backward<decltype(type), decltype(dim)::value>(call, a, s); });
}

}  // namespace cxrl
