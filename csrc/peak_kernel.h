// Products and sums on registers alone, whose rate is a processor's ceiling. Included once per instruction set.

#include "simd.h"
#include "gemm.h"

// Ten independent sums: more than the latency of an operation asks for, and few enough for 16 registers. Returns floating-point operations.
template <class Op>
double register_products(int64_t turns, int64_t operations) {
  constexpr int kSums = 10;
  vf sums[kSums], scalar = spread(0.5f), column = spread(1e-3f);
#pragma GCC unroll 10
  for (int i = 0; i < kSums; ++i) sums[i] = spread((float)i);
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) sums[i] = Op::apply(sums[i], scalar, column);
#if DDVI_X86
#pragma GCC unroll 10
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+v"(sums[i]));  // no turn may be left out
#endif
  }
  vf total = {};
#pragma GCC unroll 10
  for (int i = 0; i < kSums; ++i) total += sums[i];
  static thread_local volatile float kept;
  kept = sum(total);
  return (double)turns * kSums * kLanes * (double)operations;
}

inline void peak(int64_t turns, bool bf16, double& operations) {
#if DDVI_LEVEL == 3
  if (bf16) {
    operations = register_products<PairDot>(turns, 4);
    return;
  }
#endif
  operations = register_products<MultiplyAdd>(turns, 2);
}
