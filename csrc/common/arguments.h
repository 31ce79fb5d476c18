// Sizes and views that the CPU and the CUDA ops take. Strides are in elements.
#pragma once

#include <cstdint>

#include "operand.h"

namespace cxrl {

struct StepShape {
  int64_t batch, row_size;
};

enum class Form : int { kDifference = 0, kWin = 1, kBradleyTerry = 2, kDirect = 3 };

struct ComparisonShape {
  int64_t num_samples, num_prompts, num_anchors, num_rewards;
};

// [batch, heads, rows, D] with dense last dimension.
struct AttentionView {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t batch_stride = 0, head_stride = 0, row_stride = 0;

  explicit operator bool() const { return data != nullptr; }
  char* row(int64_t b, int64_t h, int64_t n) const {
    return data + (b * batch_stride + h * head_stride + n * row_stride) * item_size(dtype);
  }
};

struct AttentionShape {
  int64_t batch, heads, queries, keys, extra_keys, dim, kv_batch;
};

struct AttentionInputs {
  AttentionView q, k, v, extra_k, extra_v;  // extra_*: batch stride 0 where all rows share it
  const int64_t* kv_index;                  // [batch], or null: row b attends to row b
  float scale;
  AttentionShape shape;
};

}  // namespace cxrl
