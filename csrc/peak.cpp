#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "threads.h"

#define DDVI_KERNEL "peak_kernel.h"
#define DDVI_KERNEL_BF16
#include "each_isa.h"

// Multiplies and adds on the registers of every thread; returns the number of floating-point operations. With `bf16` they are those of
// bf16 dot products, where the processor has them.
DDVI_EXPORT double ddvi_peak(int64_t threads, int64_t turns, int64_t bf16) {
  double operations = 0;
  ddvi::parallel_for(threads, threads, [&](int64_t item) {
    double mine = 0;
    DDVI_DISPATCH(peak(turns, bf16 != 0, mine))
    if (item == 0) operations = mine;
  });
  return operations * (double)threads;
}
