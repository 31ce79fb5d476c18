// Conversions and tensor-core operations of the emulator, from the definitions in the PTX manual.
#pragma once

namespace cxrl {

inline float to_float(Half v) { return emulator::half_to_float(v.bits); }
inline float to_float(BFloat v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline Half from_float<Half>(float v) {
  return {emulator::float_to_half(v)};
}
template <>
inline BFloat from_float<BFloat>(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};  // ties to even
}

namespace emulator {
template <typename T>
float element(uint32_t packed, int half) {
  return to_float(T{static_cast<uint16_t>(packed >> 16 * half)});
}
struct Fragments {
  uint32_t a[4], b[2];
};
}  // namespace emulator

// Lane l holds a: rows l/4 (+8), columns 2(l%4), +1 (+8); b: the same columns as rows, column l/4; d: rows
// l/4 (+8), columns 2(l%4), +1.
template <typename T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  using namespace emulator;
  Fragments own;
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  std::memcpy(slot(current->lane), &own, sizeof(own));
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    const int row = current->lane / 4 + i / 2 * 8, column = current->lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      Fragments left, right;
      std::memcpy(&left, slot(row % 8 * 4 + k % 8 / 2), sizeof(left));
      std::memcpy(&right, slot(column * 4 + k % 8 / 2), sizeof(right));
      d[i] += element<T>(left.a[row / 8 + k / 8 * 2], k % 2) * element<T>(right.b[k / 8], k % 2);
    }
  }
  warp_barrier();
}

template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* row) {
  using namespace emulator;
  std::memcpy(slot(current->lane), &row, sizeof(row));
  warp_barrier();
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int at = current->lane / 4, along = current->lane % 4 * 2 + j;
      const int line = kTransposed ? along : at, column = kTransposed ? at : along;
      const void* address;
      std::memcpy(&address, slot(i * 8 + line), sizeof(address));
      std::memcpy(&pair[j], static_cast<const uint16_t*>(address) + column, 2);
    }
    r[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  warp_barrier();
}

}  // namespace cxrl
