#include <algorithm>
#include <cstdint>
#include <cstring>

#include "threads.h"

#define DDVI_KERNEL "genotypes_kernel.h"
#include "each_isa.h"

// Rows of 2-bit codes, `stride` bytes apart: code j of a row is in byte j / 4 at bit 2 (j % 4). 3 is a missing call.

DDVI_EXPORT void ddvi_unpack_codes(const uint8_t* packed,  // (rows, stride)
                                   int64_t rows, int64_t stride, int64_t count, int64_t threads,
                                   uint8_t* codes) {  // (rows, count)
  DDVI_DISPATCH(unpack_codes(packed, rows, stride, count, threads, codes))
}

DDVI_EXPORT void ddvi_unpack_scaled(const uint8_t* packed,  // (rows, stride)
                                    const float* centre,    // (count)
                                    const float* scale,     // (count)
                                    const float* missing,   // (count)
                                    int64_t rows, int64_t stride, int64_t count, int64_t threads,
                                    float* out) {  // (rows, count)
  DDVI_DISPATCH(unpack_scaled(packed, centre, scale, missing, rows, stride, count, threads, out))
}
