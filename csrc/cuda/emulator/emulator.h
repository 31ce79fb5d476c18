// Runs the kernels on the CPU, for tests: every CUDA thread of a block is a fiber, blocks come one after the
// other, and barriers and warp operations switch between fibers. It executes the kernels' own source (index
// arithmetic, tails, order of sums, fragment layouts, missing barriers), under the sanitizers if asked; it
// says nothing about speed, about what nvcc makes of the source, or about races that need true concurrency.
// Linux on x86-64 only.
//
// Shared memory starts as NaN in every block, and the environment variable CXRL_EMULATOR_ORDER=reverse runs
// threads and blocks backwards: a result that changes betrays a missing barrier.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "../elements.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time, so one copy will do

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cxrl {
namespace emulator {

struct Thread {
  dim3 index;
  int warp, lane;
};
extern Thread* current;
extern dim3 block_index, block_size, grid_size;
extern unsigned char* shared_memory;

void block_barrier();
void warp_barrier();
// 256 bytes that a lane shows to the others of its warp.
unsigned char* slot(int lane);
void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body);

template <typename T>
T exchange(T value, int from) {
  std::memcpy(slot(current->lane), &value, sizeof(T));
  warp_barrier();
  T result;
  std::memcpy(&result, slot(from), sizeof(T));
  warp_barrier();
  return result;
}

float half_to_float(uint16_t bits);
uint16_t float_to_half(float v);

}  // namespace emulator
}  // namespace cxrl

#define threadIdx (::cxrl::emulator::current->index)
#define blockIdx (::cxrl::emulator::block_index)
#define blockDim (::cxrl::emulator::block_size)
#define gridDim (::cxrl::emulator::grid_size)

inline void __syncthreads() { cxrl::emulator::block_barrier(); }
inline void __syncwarp() { cxrl::emulator::warp_barrier(); }
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cxrl::emulator::exchange(value, cxrl::emulator::current->lane ^ mask);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return cxrl::emulator::exchange(value, lane);
}
inline float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}

namespace cxrl {

inline float not_a_number() { return __builtin_nanf(""); }
inline float to_float(float v) { return v; }
inline float to_float(Half v);
inline float to_float(BFloat v);
template <typename T>
T from_float(float v);

template <typename T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T);
template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* row);

inline unsigned char* dynamic_shared() { return emulator::shared_memory; }
inline void use_device(int) {}
template <typename Kernel>
const char* problem_of(int, Kernel) {
  return "";
}

template <typename... Parameters>
void launch(const char*, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, void*,
            Parameters... arguments) {
  emulator::run(grid, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace cxrl

#include "operations.h"
