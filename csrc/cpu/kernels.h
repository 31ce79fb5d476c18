// The table of inner loops. kernels.cpp is compiled once for every instruction set and fills one table each;
// everything that owns memory, starts threads or reports errors stays outside, in <op>.cpp.
#pragma once

#include <cstdint>

#include "../common/arguments.h"

namespace cxrl {

// Coefficients of one row of a denoising step: mean = c_x * x_t + c_e * m.
struct StepRow {
  float c_x, c_e, sigma, guidance;
};

// A range of samples and the prepared bank: `bank` is [P, K, padded_m] (pads are +inf), `mean` and `inverse`
// are [P, K], `inverse` being 1 / (std) or, for Bradley-Terry, 1 / (temperature * std).
struct ComparisonArgs {
  const float* rewards;
  const int64_t* prompt_of;
  const float* weights;
  const float* bank;
  const float* mean;
  const float* inverse;
  int64_t num_rewards, num_anchors, padded_m;
  Form form;
};

// c[rows, columns] (+)= a[rows, depth] · b[depth, columns]; columns is a multiple of the vector width, b and
// c have dense rows, a has any strides.
struct Product {
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  int64_t rows, columns, depth;
  bool accumulate;
};

constexpr int64_t kMaxRows = 64;  // of one call of softmax_rows

struct Kernels {
  const char* name;
  int width;  // floats in a vector

  // n elements `stride` elements apart, to or from dense float32.
  void (*load)(const char* src, DType dtype, int64_t stride, int64_t n, float* dst);
  void (*store)(const float* src, int64_t n, char* dst, DType dtype, int64_t stride);
  // Index of the first element that is not finite, or -1.
  int64_t (*find_nonfinite)(const float* src, int64_t n);

  // Sum of (x_prev - mean)^2 over n dense elements. uncond may be null in all three.
  double (*log_prob_tile)(const float* cond, const float* uncond, const float* x_t, const float* x_prev,
                          int64_t n, StepRow row);
  double (*step_tile)(const float* cond, const float* uncond, const float* x_t, const float* noise, int64_t n,
                      StepRow row, float* x_prev);
  // grad_m = factor * (x_prev - mean), shared out to the two outputs.
  void (*grad_tile)(const float* cond, const float* uncond, const float* x_t, const float* x_prev, int64_t n,
                    StepRow row, float factor, float* grad_cond, float* grad_uncond);

  // Samples begin..end: score[n], slope[n, k] = d value / d reward, and halves[k] += 2 for every anchor
  // beaten, 1 for a tie.
  void (*compare)(const ComparisonArgs& args, int64_t begin, int64_t end, float* score, float* slope,
                  int64_t* halves);

  void (*product)(const Product& p);
  // Rows of scores to probabilities, in place; what is past `columns`, up to a whole vector, becomes 0.
  void (*softmax_rows)(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                       float* log_sum_exp);
  void (*probability_rows)(float* scores, int64_t rows, int64_t columns, int64_t row_stride, float scale,
                           const float* log_sum_exp);
  void (*softmax_grad_rows)(const float* probability, float* grad, int64_t rows, int64_t columns,
                            int64_t row_stride, float scale);
  // dst[j, i] = src[i, j], rows of dst padded with 0 to a whole vector; those of src must be whole vectors.
  void (*transpose)(const float* src, int64_t rows, int64_t columns, int64_t src_row, float* dst,
                    int64_t dst_row);
};

// The table in use: the best this processor runs, unless set_isa asked for another.
const Kernels& kernels();
const char* isa_name();
// Throws std::invalid_argument when `name` is not built or not supported here.
void set_isa(const char* name);

}  // namespace cxrl
