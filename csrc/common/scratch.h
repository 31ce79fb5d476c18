// Working memory of one unit of a parallel loop.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace cxrl {

constexpr std::align_val_t kCacheLine{64};

struct FreeAligned {
  void operator()(float* data) const { ::operator delete(data, kCacheLine); }
};
using AlignedFloats = std::unique_ptr<float[], FreeAligned>;

// Buffers that start on a cache line, so that no vector of a product's right side crosses one. Small ones
// stay with the thread for its next unit: given back, they can make the C library trim its heap, and then
// every call takes its pages from the system again.
template <int kSlots>
class Scratch {
 public:
  // `size` floats, not initialised, until this object ends or the slot is taken again.
  float* take(int slot, int64_t size) {
    if (size > kKept) return (large_[slot] = allocate(size)).get();
    thread_local AlignedFloats kept[kSlots];
    if (!kept[slot]) kept[slot] = allocate(kKept);
    return kept[slot].get();
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t kKept = 0;  // exact sizes, for the sanitizer to see an overrun
#else
  static constexpr int64_t kKept = 1 << 15;  // floats of a slot
#endif
  static AlignedFloats allocate(int64_t size) {
    return AlignedFloats(
        static_cast<float*>(::operator new(static_cast<size_t>(size) * sizeof(float), kCacheLine)));
  }
  AlignedFloats large_[kSlots];
};

}  // namespace cxrl
