#include <algorithm>
#include <cstdint>

#include "draws.h"
#include "threads.h"

// Numbers (planes, rows, width); plane p draws from stream + p.
struct FillArguments {
  int64_t planes, rows, width, stream, threads;
  Draws draws;
};

enum FillKind : int64_t { kWords = 0, kUniforms = 1, kNormals = 2 };

#define DDVI_KERNEL "noise_kernel.h"
#include "each_isa.h"

// Words are written as int64, the others as float32.
DDVI_EXPORT void ddvi_fill(int64_t kind, int64_t planes, int64_t rows, int64_t width, int64_t stream, uint64_t seed, int64_t first_index,
                           int64_t rows_per_sample, int64_t threads, void* out) {
  const FillArguments arguments{planes, rows, width, stream, threads, {seed, first_index, rows_per_sample}};
  DDVI_DISPATCH(fill(arguments, kind, out))
}

DDVI_EXPORT void ddvi_add_noise(const float* x0,         // (rows, width)
                                const int64_t* t,        // (rows)
                                const float* signal,     // (T)
                                const float* deviation,  // (T)
                                const float* noise,      // (rows, width)
                                int64_t rows, int64_t width, int64_t threads,
                                float* out) {  // (rows, width)
  DDVI_DISPATCH(add_noise(x0, t, signal, deviation, noise, rows, width, threads, out))
}
