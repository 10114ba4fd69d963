// Arguments of the chain: numbers and pointers to contiguous float32 arrays, mirrored by ddvi_fast/native/chain.py.
// Every field has eight bytes, so that padding is the same on both sides.
#pragma once

#include "draws.h"

enum NoiseSource : int64_t { kNoNoise = 0, kGivenNoise = 1, kDrawnNoise = 2 };

// Rows of data are those of all groups, R. Without `order` each group has R / G of them, one group after the other.
struct ChainArguments {
  int64_t groups, rows, latent, context_width, hidden_width, steps;  // G, R, D, C, H, T
  int64_t residual, bf16, threads, noise_source;
  Draws draws;

  const float* start;         // (R, D)
  const float* context;       // (R, C)
  const float* first;         // (G, H, D + C)
  const float* hidden;        // (G, 3, H, H)
  const float* last;          // (G, D, H)
  const float* last_bias;     // (G, D)
  const float* time_table;    // (G, T, 4, H)
  const float* coefficients;  // (T, 5)
  const float* noise;         // (T, R, D) or null
  const int64_t* order;       // (R): the rows sorted by group, or null
  const int64_t* starts;      // (G + 1): where each group starts in `order`, or null

  float* z;           // (R, D)
  float* path;        // (R) or null
  float* trajectory;  // (T + 1, R, D), start first, or null; backward reads it

  // Upstream gradients, each null if there is none.
  const float* z_upstream;           // (R, D)
  const float* path_upstream;        // (R)
  const float* trajectory_upstream;  // (T + 1, R, D)

  // Gradients, each null if not needed. Those of the five weights are all null or all present.
  float* d_start;
  float* d_context;
  float* d_first;
  float* d_hidden;
  float* d_last;
  float* d_last_bias;
  float* d_time_table;
  float* d_coefficients;
  float* d_noise;
};
