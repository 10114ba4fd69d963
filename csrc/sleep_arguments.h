// Arguments of the sleep term's regression, mirrored by ddvi_fast/native/sleep.py. Every field has eight bytes, so that padding is the same
// on both sides.
#pragma once

#include "draws.h"

enum Loss : int64_t { kSquared = 0, kAbsolute = 1, kHuber = 2 };

// Rows of data are those of all groups, as in `ChainArguments`.
struct SleepArguments {
  int64_t groups, rows, latent, context_width, hidden_width, steps;  // G, R, D, C, H, T
  int64_t residual, bf16, threads, loss;
  Draws draws;

  const float* x0;          // (R, D)
  const int64_t* t;         // (R), each in [0, T)
  const float* context;     // (R, C)
  const float* first;       // (G, H, D + C)
  const float* hidden;      // (G, 3, H, H)
  const float* last;        // (G, D, H)
  const float* last_bias;   // (G, D)
  const float* time_table;  // (G, T, 4, H)
  const float* table;       // (T, 5): signal, deviation, c0, c1, weight
  const float* noise;       // (R, D), or null where it is drawn
  const int64_t* order;     // (R): the rows sorted by group, or null
  const int64_t* starts;    // (G + 1): where each group starts in `order`, or null

  float* value;           // (R)
  const float* upstream;  // (R); backward reads it

  // Gradients, each null if not needed. Those of the five weights are all null or all present.
  float* d_x0;
  float* d_context;
  float* d_first;
  float* d_hidden;
  float* d_last;
  float* d_last_bias;
  float* d_time_table;
  float* d_table;
  float* d_noise;
};
