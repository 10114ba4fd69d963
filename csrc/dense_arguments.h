// What a call of a dense layer hands over, mirrored by ddvi_fast/native/dense.py. Every field has eight bytes, so that the two sides
// cannot disagree on padding.
#pragma once

#include "draws.h"

struct DenseArguments {
  int64_t rows, inputs, outputs;  // R, K, M
  int64_t bf16, threads;
  double slope;  // of the activation below zero: 1 for none, 0 for relu
  double rate;   // at which values are dropped, 0 for none
  int64_t stream;
  Draws draws;

  const float* x;       // (R, K)
  const float* weight;  // (M, K)
  const float* bias;    // (M)

  float* out;             // (R, M); backward reads it
  const float* upstream;  // (R, M); backward reads it

  // Gradients, each null if nobody asks; the last two stand or fall together.
  float* d_x;
  float* d_weight;
  float* d_bias;
};
