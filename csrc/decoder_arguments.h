// Arguments of the gradient of a log-likelihood for the latents of a multilayer perceptron, mirrored by ddvi_fast/native/decoder.py. Every
// field has eight bytes, so that padding is the same on both sides.
#pragma once

#include <cstdint>

enum Activation : int64_t { kSlope = 0, kTanh = 1, kSilu = 2 };
enum LikelihoodKind : int64_t { kBernoulli = 0, kGaussian = 1, kBinomial = 2 };

struct DecoderArguments {
  int64_t rows, layers, period, threads;  // R, L, N: row r has the data r % N
  int64_t activation, likelihood;
  int64_t scale_period;  // 1 for one standard deviation per dimension, 0 for one of all
  int64_t ranged;        // whether the mean is low + span sigmoid(output)
  double slope;          // of the activation below zero
  double total;          // number of trials of the binomial likelihood
  double low, span;

  const int64_t* widths;        // (L + 1): D, hidden widths, P
  const float* const* weights;  // (L) of (outputs, inputs)
  const float* const* turned;   // (L) of (inputs, outputs), the same transposed
  const float* const* biases;   // (L) of (outputs)
  const float* z;               // (R, D)
  const float* x;               // (N, P)
  const float* scale;           // standard deviations, (P) or (1), or null
  float* d_z;                   // (R, D)
};
