// trajectory_log_prob and denoise_step: rows are cut into tiles, tiles are brought to dense float32 where
// they are not already, and the inner loops of kernels.h do the rest. The formulas are in
// cxrl/ops/trajectory_log_prob.py.
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../common/parallel.h"
#include "ops.h"

namespace cxrl {
namespace {

constexpr int64_t kTile = 1024;  // five tiles of float32 stay in a 32 KiB first-level cache
constexpr double kHalfLogTwoPi = 0.91893853320467274178;

StepRow read_row(const float* table, int64_t stride, int64_t row, float guidance) {
  const float* r = table + row * stride;
  return {r[0], r[1], r[2], guidance};
}

void check_table(const float* table, int64_t stride, int64_t batch, bool allow_zero, const char* op) {
  for (int64_t b = 0; b < batch; ++b) {
    const float* r = table + b * stride;
    const bool finite = std::isfinite(r[0]) && std::isfinite(r[1]) && std::isfinite(r[2]);
    if (finite && (r[2] > 0.0f || (allow_zero && r[2] == 0.0f))) continue;
    std::ostringstream message;
    message << op << ": table_rows[" << b << "] = [" << r[0] << ", " << r[1] << ", " << r[2]
            << "]; expected finite (c_x, c_e, sigma) with "
            << (allow_zero ? "sigma >= 0" : "sigma > 0 (leave deterministic steps out)");
    throw std::invalid_argument(message.str());
  }
}

// Calls part(element offset in the row's storage, stride, position in the tile, count) for the dense runs of
// tile [begin, begin + n) of a row that is stored channels last: one run for every channel that the tile
// touches.
template <typename Part>
void for_channels(int64_t channels, int64_t row_size, int64_t begin, int64_t n, Part part) {
  const int64_t positions = row_size / channels;
  for (int64_t done = 0; done < n;) {
    const int64_t channel = (begin + done) / positions, position = (begin + done) % positions;
    const int64_t count = std::min(positions - position, n - done);
    part(position * channels + channel, channels, done, count);
    done += count;
  }
}

const float* load_tile(const Kernels& kernel, const Operand& t, int64_t row, int64_t row_size, int64_t begin,
                       int64_t n, float* buffer) {
  if (!t) return nullptr;
  const int64_t size = item_size(t.dtype);
  const char* data = t.data + row * t.row_stride * size;
  if (t.channels == 0) {
    if (t.dtype == DType::kFloat32) return reinterpret_cast<const float*>(data) + begin;
    kernel.load(data + begin * size, t.dtype, 1, n, buffer);
  } else {
    for_channels(t.channels, row_size, begin, n,
                 [&](int64_t from, int64_t stride, int64_t at, int64_t count) {
                   kernel.load(data + from * size, t.dtype, stride, count, buffer + at);
                 });
  }
  return buffer;
}

float* output_tile(const Operand& t, int64_t row, int64_t begin, float* buffer) {
  if (!t) return nullptr;
  if (t.channels == 0 && t.dtype == DType::kFloat32)
    return reinterpret_cast<float*>(t.data) + row * t.row_stride + begin;
  return buffer;
}

void store_tile(const Kernels& kernel, const Operand& t, int64_t row, int64_t row_size, int64_t begin,
                int64_t n, const float* buffer) {
  if (!t || (t.channels == 0 && t.dtype == DType::kFloat32)) return;
  const int64_t size = item_size(t.dtype);
  char* data = t.data + row * t.row_stride * size;
  if (t.channels == 0) {
    kernel.store(buffer, n, data + begin * size, t.dtype, 1);
    return;
  }
  for_channels(t.channels, row_size, begin, n, [&](int64_t to, int64_t stride, int64_t at, int64_t count) {
    kernel.store(buffer + at, count, data + to * size, t.dtype, stride);
  });
}

// Where every tensor is channels last the order of the elements is the same everywhere, and a row is flat.
template <typename... Operands>
void flatten_if_alike(int64_t channels, Operands&... operands) {
  const bool alike = ((!operands || operands.channels == channels) && ...);
  if (alike) ((operands.channels = 0), ...);
}

int64_t num_tiles(int64_t row_size) { return (row_size + kTile - 1) / kTile; }

float log_prob_of(const double* partial, int64_t tiles, int64_t row_size, float sigma) {
  double total = 0.0;
  for (int64_t i = 0; i < tiles; ++i) total += partial[i];
  const double s = sigma;
  const double mean = total / static_cast<double>(row_size);  // of no elements: nan, as in PyTorch
  return static_cast<float>(-0.5 * mean / (s * s) - std::log(s) - kHalfLogTwoPi);
}

}  // namespace

void trajectory_log_prob_cpu(Operand cond, Operand uncond, float guidance, Operand x_t, Operand x_prev,
                             const float* table, int64_t table_stride, StepShape shape, float* log_prob) {
  check_table(table, table_stride, shape.batch, false, "trajectory_log_prob");
  flatten_if_alike(cond.channels, cond, uncond, x_t, x_prev);
  const Kernels& kernel = kernels();
  const int64_t tiles = num_tiles(shape.row_size);
  std::vector<double> partial(static_cast<size_t>(shape.batch * tiles));
  parallel_for(shape.batch * tiles, shape.batch * shape.row_size, [&](int64_t unit) {
    const int64_t row = unit / tiles, begin = unit % tiles * kTile;
    const int64_t n = std::min(kTile, shape.row_size - begin);
    float buffer[4][kTile];
    auto tile = [&](const Operand& t, int i) {
      return load_tile(kernel, t, row, shape.row_size, begin, n, buffer[i]);
    };
    partial[static_cast<size_t>(unit)] =
        kernel.log_prob_tile(tile(cond, 0), tile(uncond, 1), tile(x_t, 2), tile(x_prev, 3), n,
                             read_row(table, table_stride, row, guidance));
  });
  for (int64_t b = 0; b < shape.batch; ++b)
    log_prob[b] = log_prob_of(partial.data() + b * tiles, tiles, shape.row_size, table[b * table_stride + 2]);
}

void trajectory_log_prob_backward_cpu(const float* grad, int64_t grad_stride, Operand cond, Operand uncond,
                                      float guidance, Operand x_t, Operand x_prev, const float* table,
                                      int64_t table_stride, StepShape shape, Operand grad_cond,
                                      Operand grad_uncond) {
  flatten_if_alike(cond.channels, cond, uncond, x_t, x_prev, grad_cond, grad_uncond);
  const Kernels& kernel = kernels();
  const int64_t tiles = num_tiles(shape.row_size);
  parallel_for(shape.batch * tiles, shape.batch * shape.row_size, [&](int64_t unit) {
    const int64_t row = unit / tiles, begin = unit % tiles * kTile;
    const int64_t n = std::min(kTile, shape.row_size - begin);
    float buffer[6][kTile];
    auto tile = [&](const Operand& t, int i) {
      return load_tile(kernel, t, row, shape.row_size, begin, n, buffer[i]);
    };
    const StepRow r = read_row(table, table_stride, row, guidance);
    const double variance = static_cast<double>(r.sigma) * r.sigma;
    const double factor = static_cast<double>(grad[row * grad_stride]) * r.c_e /
                          (variance * static_cast<double>(shape.row_size));
    float* to_cond = output_tile(grad_cond, row, begin, buffer[4]);
    float* to_uncond = output_tile(grad_uncond, row, begin, buffer[5]);
    kernel.grad_tile(tile(cond, 0), tile(uncond, 1), tile(x_t, 2), tile(x_prev, 3), n, r,
                     static_cast<float>(factor), to_cond, to_uncond);
    store_tile(kernel, grad_cond, row, shape.row_size, begin, n, to_cond);
    store_tile(kernel, grad_uncond, row, shape.row_size, begin, n, to_uncond);
  });
}

void denoise_step_cpu(Operand cond, Operand uncond, float guidance, Operand x_t, Operand noise,
                      const float* table, int64_t table_stride, StepShape shape, Operand x_prev,
                      float* log_prob) {
  check_table(table, table_stride, shape.batch, true, "denoise_step");
  flatten_if_alike(cond.channels, cond, uncond, x_t, noise, x_prev);
  const Kernels& kernel = kernels();
  const int64_t tiles = num_tiles(shape.row_size);
  std::vector<double> partial(static_cast<size_t>(shape.batch * tiles));
  parallel_for(shape.batch * tiles, shape.batch * shape.row_size, [&](int64_t unit) {
    const int64_t row = unit / tiles, begin = unit % tiles * kTile;
    const int64_t n = std::min(kTile, shape.row_size - begin);
    float buffer[5][kTile];
    auto tile = [&](const Operand& t, int i) {
      return load_tile(kernel, t, row, shape.row_size, begin, n, buffer[i]);
    };
    float* out = output_tile(x_prev, row, begin, buffer[4]);
    partial[static_cast<size_t>(unit)] =
        kernel.step_tile(tile(cond, 0), tile(uncond, 1), tile(x_t, 2), tile(noise, 3), n,
                         read_row(table, table_stride, row, guidance), out);
    store_tile(kernel, x_prev, row, shape.row_size, begin, n, out);
  });
  for (int64_t b = 0; b < shape.batch; ++b) {
    const float sigma = table[b * table_stride + 2];
    log_prob[b] = sigma > 0.0f ? log_prob_of(partial.data() + b * tiles, tiles, shape.row_size, sigma) : 0.0f;
  }
}

}  // namespace cxrl
