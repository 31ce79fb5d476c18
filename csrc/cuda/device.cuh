// What the kernels share: element types, launches, sums over a block, tensor-core fragments. With
// CXRL_CUDA_EMULATION the same files are compiled by a C++ compiler and run on the CPU, see
// emulator/emulator.h.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../common/arguments.h"
#include "elements.h"

#if defined(CXRL_CUDA_EMULATION)
#include "emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace cxrl {

struct alignas(16) Words4 {
  uint32_t word[4];
};

constexpr int kWarp = 32;

#if !defined(CXRL_CUDA_EMULATION)

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fffffffu); }

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ float to_float(BFloat v) { return __bfloat162float(__ushort_as_bfloat16(v.bits)); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}
template <>
__device__ __forceinline__ BFloat from_float<BFloat>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}

// d += a · b, a 16×16 row-major, b 16×8 column-major, d in float32; the layout of the fragments is PTX's
// m16n8k16.
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                            BFloat) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8×8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

// Shared memory whose size the launch gives.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char cxrl_dynamic_shared[];
  return cxrl_dynamic_shared;
}

inline void check_cuda(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, so that nobody else finds it later
  throw std::runtime_error(std::string(what) + ": CUDA says: " + cudaGetErrorString(error));
}

inline void use_device(int device) { check_cuda("choosing the device", cudaSetDevice(device)); }

// Why the kernel cannot run on the device; empty if it can.
template <typename... Parameters>
const char* problem_of(int device, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) return "";
  cudaGetLastError();
  return cudaGetErrorString(error);
}

template <typename... Parameters>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            void* stream, Parameters... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    check_cuda(what, cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
  }
  void* pointers[] = {static_cast<void*>(&arguments)...};
  check_cuda(what, cudaLaunchKernel(function, grid, dim3(static_cast<unsigned>(threads)), pointers,
                                    shared_bytes, static_cast<cudaStream_t>(stream)));
}

#endif

// Two elements in a register, the first in the lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) | static_cast<uint32_t>(from_float<T>(high).bits)
                                                              << 16;
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Sum over a block of kThreads, in the same order every time; thread 0 has it. `scratch` holds kThreads / 32.
template <int kThreads>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  float total = 0.0f;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kThreads / kWarp; ++i) total += scratch[i];
  }
  return total;
}

// grid.x of `units` blocks; refuses what a grid cannot hold.
inline dim3 grid_of(const char* what, int64_t units, int64_t y = 1, int64_t z = 1) {
  if (units > 0x7fffffff || y > 0xffff || z > 0xffff)
    throw std::invalid_argument(std::string(what) + ": a grid of " + std::to_string(units) + " x " +
                                std::to_string(y) + " x " + std::to_string(z) +
                                " blocks is more than CUDA takes; split the batch");
  return dim3(static_cast<unsigned>(units), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

}  // namespace cxrl
