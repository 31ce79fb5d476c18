// Half-precision elements as bits; device.cuh and the emulator convert them.
#pragma once

#include <cstdint>

namespace cxrl {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

}  // namespace cxrl
