#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if !defined(__x86_64__) || !defined(__linux__)
#error "The CUDA emulator switches stacks by hand, on Linux and x86-64 only"
#endif

// Saves the registers that a call must keep, changes the stack, and goes on where the other fiber left off.
extern "C" void cxrl_emulator_switch(void** save, void* load);
asm(R"(
.text
.hidden cxrl_emulator_switch
.globl cxrl_emulator_switch
.type cxrl_emulator_switch,@function
cxrl_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cxrl_emulator_switch,.-cxrl_emulator_switch
)");

namespace cxrl::emulator {

Thread* current;
dim3 block_index, block_size, grid_size;
unsigned char* shared_memory;

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr int kWarpSize = 32;
enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  Thread thread;
  State state;
  void* stack_pointer;
};

std::vector<Fiber> fibers;
std::unique_ptr<unsigned char[]> stacks;
size_t num_stacks = 0;
std::vector<unsigned char> slots;
void* scheduler;
const std::function<void()>* kernel;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, %u, %u)\n", message, block_index.x, block_index.y,
               block_index.z);
  std::abort();
}

Fiber& own() { return *reinterpret_cast<Fiber*>(current); }

void leave(State state) {
  Fiber& fiber = own();
  fiber.state = state;
  cxrl_emulator_switch(&fiber.stack_pointer, scheduler);
}

void enter() {
  (*kernel)();
  leave(State::kDone);
  std::abort();
}

void start(Fiber& fiber, size_t number) {
  auto* top = reinterpret_cast<uintptr_t*>(stacks.get() + (number + 1) * kStack);
  top -= 1;  // leaves the stack as a call would: 8 bytes past a multiple of 16
  *--top = reinterpret_cast<uintptr_t>(&enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
  fiber.state = State::kReady;
}

void resume(Fiber& fiber) {
  current = &fiber.thread;
  cxrl_emulator_switch(&scheduler, fiber.stack_pointer);
}

// Runs the threads of a warp until each waits at the block's barrier or has ended.
void run_warp(Fiber* first, bool reverse) {
  for (;;) {
    int at_warp = 0, done = 0;
    for (int i = 0; i < kWarpSize; ++i) {
      Fiber& fiber = first[reverse ? kWarpSize - 1 - i : i];
      if (fiber.state == State::kReady) resume(fiber);
      at_warp += fiber.state == State::kAtWarp;
      done += fiber.state == State::kDone;
    }
    if (at_warp == 0) return;
    if (at_warp != kWarpSize) fail("a warp operation that not all 32 lanes take part in");
    for (int i = 0; i < kWarpSize; ++i) first[i].state = State::kReady;
  }
}

void run_block(bool reverse) {
  const int warps = static_cast<int>(fibers.size()) / kWarpSize;
  for (size_t i = 0; i < fibers.size(); ++i) start(fibers[i], i);
  for (;;) {
    for (int i = 0; i < warps; ++i)
      run_warp(&fibers[static_cast<size_t>((reverse ? warps - 1 - i : i) * kWarpSize)], reverse);
    size_t done = 0;
    for (Fiber& fiber : fibers) done += fiber.state == State::kDone;
    if (done == fibers.size()) return;
    if (done != 0) fail("__syncthreads that not all threads reach");
    for (Fiber& fiber : fibers) fiber.state = State::kReady;
  }
}

}  // namespace

void block_barrier() { leave(State::kAtBlock); }
void warp_barrier() { leave(State::kAtWarp); }
unsigned char* slot(int lane) { return slots.data() + (current->warp * kWarpSize + lane) * 256; }

void run(dim3 grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const char* order = std::getenv("CXRL_EMULATOR_ORDER");
  const bool reverse = order && std::string(order) == "reverse";
  const auto count = static_cast<size_t>(threads);
  if (threads % kWarpSize) fail("a block that is no multiple of a warp");
  if (num_stacks < count) {
    stacks.reset(new unsigned char[count * kStack]);
    num_stacks = count;
  }
  fibers.assign(count, {});
  slots.assign(count * 256, 0);
  for (int i = 0; i < threads; ++i)
    fibers[static_cast<size_t>(i)].thread = {dim3(static_cast<unsigned>(i), 0, 0), i / kWarpSize,
                                             i % kWarpSize};
  kernel = &body;
  block_size = dim3(static_cast<unsigned>(threads));
  grid_size = grid;
  const uint64_t blocks = uint64_t{1} * grid.x * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t block = reverse ? blocks - 1 - i : i;
    block_index = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                       static_cast<unsigned>(block / grid.x / grid.y));
    // A heap block of the exact size: the address sanitizer sees what goes past it.
    std::unique_ptr<unsigned char, decltype(&std::free)> shared(
        static_cast<unsigned char*>(std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16)), &std::free);
    const float poison = std::numeric_limits<float>::quiet_NaN();
    for (size_t at = 0; at + 4 <= shared_bytes; at += 4) std::memcpy(shared.get() + at, &poison, 4);
    shared_memory = shared.get();
    run_block(reverse);
  }
}

float half_to_float(uint16_t bits) {
  const int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value;
  if (exponent == 31) {
    value = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    value = std::ldexp(static_cast<float>(fraction | 1024), exponent - 25);
  }
  return sign ? -value : value;
}

uint16_t float_to_half(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return 0x7fff;
  const float size = std::fabs(v);
  if (size == 0.0f) return sign;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(size, &exponent);  // size = f · 2^exponent, f in [0.5, 1)
  exponent = exponent < -13 ? -13 : exponent;
  // The default rounding of nearbyint is ties to even; a carry into the next exponent comes out right by
  // addition.
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return static_cast<uint16_t>(sign | (units + (exponent + 13 > 0 ? (exponent + 13) << 10 : 0)));
}

}  // namespace cxrl::emulator
