// Gradient of the denoising chain for small batches, from the trajectory and the ReLUs' signs (the counterpart of chain_forward.cu).
//
// Launch and shared memory are those of chain_forward. Sums over rows and steps for the weights are made by another kernel, from `signs`,
// `trajectory` and `d_output`. A program writes one row of `coefficient_sums`; their sum over the middle axis is the gradient.
// Macros: those of chain_forward but DDVI_KEEP, and DDVI_PATH_GRADIENT, DDVI_TRAJECTORY_GRADIENT, DDVI_NOISE_GRADIENT,
// DDVI_COEFFICIENT_GRADIENT (options.cuh).
#include "options.cuh"

#include "instructions.cuh"

extern "C" __global__ void __launch_bounds__(kThreads, 1) chain_backward(
    const float *first,         // [G, H, D + C]
    const float *hidden,        // [G, 3, H, H], float32 in every precision
    const float *last,          // [G, D, H]
    const float *coefficients,  // [T, 5]: A, B, s, sqrt(alpha), beta
    const float *noise,         // [T, G, R, D]; null unless DDVI_NOISE is 1
    const int64 *order,         // [R], the rows sorted by group; null without an index, and with one arrays of rows have no axis G
    const int64 *starts,        // [G + 1], where each group starts in `order`; null without an index
    const int64 *state,         // [2], seed and first draw index; null unless DDVI_NOISE is 2
    const float *trajectory,    // [T + 1, G, R, D], start first
    const int *signs,           // [T, G, R, 4, H / 32], signs.cuh, steps in the order of the trajectory
    const float *outputs,       // [T, G, R, D], in the order of the trajectory; null unless DDVI_COEFFICIENT_GRADIENT
    const float *d_z,           // [G, R, D]; may be null
    const float *d_path,        // [G, R]; null unless DDVI_PATH_GRADIENT
    const float *d_trajectory,  // [T + 1, G, R, D]; null unless DDVI_TRAJECTORY_GRADIENT
    float *d_y_T,               // [G, R, D]
    float *d_context,           // [G, R, C]; may be null
    float *d_noise,             // [T, G, R, D]; null unless DDVI_NOISE_GRADIENT
    float *d_output,            // [T, G, R, D], gradient of the network's outputs, steps in the order of the trajectory
    float *coefficient_sums,    // [T, tiles G, 5], first axis step; null unless DDVI_COEFFICIENT_GRADIENT
    int64 offset, int64 groups, int64 rows, int64 rows_per_sample, int64 steps) {}
