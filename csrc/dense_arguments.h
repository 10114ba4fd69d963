// Arguments of a dense layer, mirrored by ddvi_fast/native/dense.py. Every field has eight bytes, so that padding is the same on both
// sides.
#pragma once

#include "draws.h"

struct DenseArguments {
  int64_t rows, inputs, outputs;  // R, K, M
  int64_t bf16, threads;
  double slope;  // slope of the activation below zero: 1 for none, 0 for relu
  double rate;   // dropout rate, 0 for none
  int64_t stream;
  Draws draws;

  const float* x;       // (R, K)
  const float* weight;  // (M, K)
  const float* bias;    // (M)

  float* out;             // (R, M); backward reads it
  const float* upstream;  // (R, M); backward reads it

  // Gradients, each null if not needed; the last two are both null or both present.
  float* d_x;
  float* d_weight;
  float* d_bias;
};
