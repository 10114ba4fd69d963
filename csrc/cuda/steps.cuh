// What the steps of the chain need beside the network, for some steps at a time: coefficients and noise.
#pragma once

#include "instructions.cuh"
#include "rng.cuh"
#include "rows.cuh"
#include "states.cuh"

constexpr int kPiece = kLatent > 8 ? 16 : 32;  // steps whose coefficients and noise are in shared memory
constexpr bool kNoisy = DDVI_NOISE != DDVI_DETERMINISTIC;

struct alignas(16) Coefficients {
  float state, output, deviation, scale;                        // A, B, s, sqrt(alpha)
  float inverse_beta, log_ratio, inverse_deviation, beta;       // log_ratio: log s - log(beta) / 2
};

struct Piece {
  Coefficients coefficients[kPiece];
  float noise[kNoisy ? kPiece : 1][kStates];
};

// Rows of the tile, for all threads.
struct Rows {
  int64 row[kRows];
  uint64 draw[kRows];
};

DDVI_INLINE void fill_coefficients(Piece &piece, const float *coefficients, int count, int first, int direction) {
  if (threadIdx.x < count) {
    const float *k = coefficients + 5 * (int64)(first + direction * (int)threadIdx.x);
    const float deviation = k[2], beta = k[4];
    piece.coefficients[threadIdx.x] = {k[0], k[1], deviation, k[3], reciprocal(beta), logf(deviation) - 0.5f * logf(beta), reciprocal(deviation), beta};
  }
}

// Noise of `count` steps from `first` on, upwards or downwards (direction 1 or -1); `step_size` is the number of states of a step of all rows.
DDVI_INLINE void fill_noise(Piece &piece, const Rows &rows, const float *noise, uint64 seed, int count, int first, int direction, int64 step_size) {
#if DDVI_NOISE == DDVI_DRAWN
  constexpr int blocks = (kLatent + 3) / 4;
  for (int item = threadIdx.x; item < count * blocks * kRows; item += kThreads) {
    const int row = item % kRows, block = item / kRows % blocks, at = item / (kRows * blocks);
    float values[4];
    normals(philox(rows.draw[row], block, first + direction * at, seed), values);
#pragma unroll
    for (int k = 0; k < (kLatent < 4 ? kLatent : 4); ++k)
      if (kLatent <= 4 || 4 * block + k < kLatent) piece.noise[at][8 * (4 * block + k) + row] = values[k];
  }
#elif DDVI_NOISE == DDVI_GIVEN
  for (int item = threadIdx.x; item < count * kLatent * kRows; item += kThreads) {
    const int row = item % kRows, d = item / kRows % kLatent, at = item / (kRows * kLatent);
    piece.noise[at][8 * d + row] = noise[(first + direction * at) * step_size + rows.row[row] * kLatent + d];
  }
#endif
}
