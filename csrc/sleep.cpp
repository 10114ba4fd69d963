#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "sleep_arguments.h"
#include "threads.h"

#define DDVI_KERNEL_BF16
#define DDVI_KERNEL "sleep_kernel.h"
#include "each_isa.h"

// The position of the first row whose step is not in [0, T), or -1.
static int64_t misplaced(const SleepArguments& s) {
  for (int64_t row = 0; row < s.rows; ++row)
    if ((uint64_t)s.t[row] >= (uint64_t)s.steps) return row;
  return -1;
}

// Loss of every row. Both functions return -1, or the position of a row whose step does not exist, in which case nothing is computed.
DDVI_EXPORT int64_t ddvi_sleep_forward(const SleepArguments* arguments) {
  const int64_t bad = misplaced(*arguments);
  if (bad >= 0) return bad;
  DDVI_DISPATCH(sleep_forward(*arguments))
  return -1;
}

// Gradients of all inputs from the upstream gradient of the losses.
DDVI_EXPORT int64_t ddvi_sleep_backward(const SleepArguments* arguments) {
  const int64_t bad = misplaced(*arguments);
  if (bad >= 0) return bad;
  DDVI_DISPATCH(sleep_backward(*arguments))
  return -1;
}
