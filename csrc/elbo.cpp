#include <algorithm>
#include <cmath>
#include <cstdint>

#include "threads.h"

struct Operand {
  const float* data;  // (period, P), or one number where period is 0, or null where the operation has no such operand
  int64_t period;
};

struct ElboArguments {
  int64_t rows, width, threads;
  float total;            // trials of the binomial
  Operand a, b, c;
  const float* upstream;  // (rows), null in the forward pass
  float* out;             // (rows)
  float *d_a, *d_b, *d_c;  // (rows, P), each null if not needed
};

#define DDVI_KERNEL "elbo_kernel.h"
#include "each_isa.h"

// Operations in the order of ddvi_fast/native/elbo.py. With `upstream` the gradients are written, else the values.
DDVI_EXPORT void ddvi_elbo(int64_t operation, int64_t rows, int64_t width, int64_t threads, float total, const float* a, int64_t a_period, const float* b,
                           int64_t b_period, const float* c, int64_t c_period, const float* upstream, float* out, float* d_a, float* d_b, float* d_c) {
  const ElboArguments e{rows, width, threads, total, {a, a_period}, {b, b_period}, {c, c_period}, upstream, out, d_a, d_b, d_c};
  DDVI_DISPATCH(elbo(operation, e))
}

DDVI_EXPORT void ddvi_log_mean_exp(const float* in, int64_t rows, int64_t width, int64_t threads, float* out) {
  DDVI_DISPATCH(log_mean_exp(in, rows, width, threads, out))
}
