// Philox 4x32-10 and normals, as in ddvi_fast/rng.py: words and uniforms bit for bit, normals to a few units in the last place.
#pragma once

#include "instructions.cuh"

// Seed and first draw of a call, and the layout of its rows.
struct Draws {
  uint64 seed;
  int64 first, rows_per_sample;

  // Row n of sample l is draw first + n + l 2^40.
  DDVI_INLINE uint64 index(int64 row) const {
    const int64 sample = row / rows_per_sample;
    return (uint64)(first + (row - sample * rows_per_sample)) + ((uint64)sample << 40);
  }
};

struct Quad {
  uint32 word[4];
};

DDVI_INLINE Quad philox(uint64 index, uint32 block, uint32 stream, uint64 seed) {
  uint32 c0 = (uint32)index, c1 = (uint32)(index >> 32), c2 = block, c3 = stream, k0 = (uint32)seed, k1 = (uint32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32 low0 = c0 * 0xD2511F53u, high0 = high_product(c0, 0xD2511F53u);
    const uint32 low2 = c2 * 0xCD9E8D57u, high2 = high_product(c2, 0xCD9E8D57u);
    c0 = high2 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low2;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// ((r >> 8) + 0.5) 2^-24: the sum rounds to float once, as the double of the specification does when it is narrowed.
DDVI_INLINE float to_uniform(uint32 word) { return ((float)(word >> 8) + 0.5f) * 5.9604644775390625e-8f; }

// sqrt(-2 ln u1) times cosine and sine of 2 pi u2. Quarter turns are subtracted from u2 without rounding; polynomials on [-pi/4, pi/4] remain.
DDVI_INLINE void box_muller(float u1, float u2, float &cosine, float &sine) {
  const float radius = square_root(-2.0f * logf(u1));
  const float quarter = floorf(u2 * 4.0f + 0.5f), angle = (u2 - quarter * 0.25f) * 6.283185307179586f, s = angle * angle;
  const float odd = ((-0.00019517f * s + 0.00833218f) * s - 0.16666655f) * (s * angle) + angle;
  const float even = ((2.44384489e-05f * s - 1.38873675e-03f) * s + 4.16666469e-02f) * (s * s) + (1.0f - 0.5f * s);
  const int turn = (int)quarter;
  const float c = turn & 1 ? odd : even, d = turn & 1 ? even : odd;
  cosine = radius * ((turn + 1) & 2 ? -c : c);
  sine = radius * (turn & 2 ? -d : d);
}

// The four normals of a block.
DDVI_INLINE void normals(const Quad &quad, float (&values)[4]) {
  box_muller(to_uniform(quad.word[0]), to_uniform(quad.word[1]), values[0], values[1]);
  box_muller(to_uniform(quad.word[2]), to_uniform(quad.word[3]), values[2], values[3]);
}
