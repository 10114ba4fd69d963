// The denoising chain for small batches: a program takes eight rows through all steps, with the hidden matrices in its registers.
//
// Launch: kThreads = 2 H threads (128 or 256); blockIdx.x is the tile of eight rows, blockIdx.y the group (1 with an index).
// Dynamic shared memory: 6 H^2 bytes for float32 (DDVI_PRECISION 2), else none. Pointers are aligned to 16 bytes.
// Macros: DDVI_PRECISION, DDVI_D, DDVI_C, DDVI_H, DDVI_NOISE, DDVI_RESIDUAL, DDVI_INDEXED, DDVI_KEEP (options.cuh).
#include "options.cuh"

#include "instructions.cuh"

extern "C" __global__ void __launch_bounds__(kThreads, 1) chain_forward(
    const float *y_T,           // [G, R, D]
    const float *context,       // [G, R, C]; null if C is 0
    const float *first,         // [G, H, D + C]
    const float *hidden,        // [G, 3, H, H], float32 in every precision
    const float *last,          // [G, D, H]
    const float *last_bias,     // [G, D]
    const float *time_table,    // [G, T, 4, H]
    const float *coefficients,  // [T, 5]: A, B, s, sqrt(alpha), beta
    const float *noise,         // [T, G, R, D]; null unless DDVI_NOISE is 1
    const int64 *order,         // [R], the rows sorted by group; null without an index, and with one arrays of rows have no axis G
    const int64 *starts,        // [G + 1], where each group starts in `order`; null without an index
    const int64 *state,         // [2], seed and first draw index; null unless DDVI_NOISE is 2
    float *z,                   // [G, R, D]
    float *path,                // [G, R]; null if DDVI_NOISE is 0
    float *trajectory,          // [T + 1, G, R, D], start first; null unless DDVI_KEEP
    int *signs,                 // [T, G, R, 4, H / 32], signs.cuh, steps in the order of the trajectory; null unless DDVI_KEEP
    float *outputs,             // [T, G, R, D], the network's outputs, in the order of the trajectory; may be null
    int64 offset, int64 groups, int64 rows, int64 rows_per_sample, int64 steps) {}
