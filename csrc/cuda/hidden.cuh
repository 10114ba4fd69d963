// Products of the three hidden matrices with the activations of eight rows, on tensor cores.
//
// A warp computes 16 units: lane 4 g + t has units 0 and 1 of place g for rows 2 t and 2 t + 1. Matrices are the left factor, in registers for
// the whole chain; activations are the right one, [units][8 rows] in shared memory, 16 bytes a unit.
//
// float32 splits a number x into two fp16: high = fp16(x) and low = fp16(2^11 (x - high)), which keep 22 bits (below 2^-14, all but 2^-36), and
// takes the three larger of four products. From 65,520 on x becomes NaN: high is infinite, and low too, with the opposite sign.
#pragma once

#include "instructions.cuh"
#include "signs.cuh"

constexpr float kLowScale = 2048.0f;
constexpr int kDepth = kHidden / 16;  // products along the inner axis

// Units of the lanes and their places in shared memory, where neither storing nor loading has bank conflicts.
struct ForwardUnits {  // a warp has the units of a half word of signs
  static constexpr int pitch = 16 + 128 / kHidden, second = 9;
  static DDVI_INLINE int unit(int warp, int g) { return unit_of_halfword(warp, g); }
  static DDVI_INLINE int loaded(int lane) { return pitch * (lane % 8 / 2 * (kHidden / 64)) + lane / 8 + second * (lane % 2); }
  static DDVI_INLINE int part(int q) { return q / 2 * pitch + q % 2 * 4; }
};

struct BackwardUnits {  // neighbors, so that columns of the matrices are read in whole sectors
  static constexpr int pitch = 20, second = 12;
  static DDVI_INLINE int unit(int warp, int g) { return 16 * warp + 2 * g; }
  static DDVI_INLINE int loaded(int lane) { return pitch * (lane / 16) + lane % 16 / 2 + second * (lane % 2); }
  static DDVI_INLINE int part(int q) { return q * 2 * pitch; }
};

// Activations of the eight rows: 16-bit numbers, and for float32 their lower parts.
template <class Units>
struct alignas(16) Activations {
  static constexpr int plane = kWarps * Units::pitch * 16;  // bytes
  uint32 words[(kSplit ? 2 : 1) * plane / 4];
};

// Where a lane stores and loads.
template <class Units>
struct Addresses {
  uint32 stored, loaded;

  DDVI_INLINE Addresses(const Activations<Units> &x, int warp, int lane) {
    const uint32 base = shared_address(x.words);
    stored = base + (Units::pitch * warp + lane / 4) * 16 + lane % 4 * 4;
    loaded = base + Units::loaded(lane) * 16;
  }
};

// A lane's part of a hidden matrix.
struct Matrix {
  uint32 high[kDepth][4];
  uint4 *low;  // [kDepth][kThreads] in shared memory, for float32
};

DDVI_INLINE uint32 low_part(uint32 high, float a, float b) {
  float x, y;
  unpack(high, x, y);
  return pack((a - x) * kLowScale, (b - y) * kLowScale);
}

DDVI_INLINE void keep(Matrix &to, int k, const float (&pairs)[4][2]) {
  uint32 low[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    to.high[k][j] = pack(pairs[j][0], pairs[j][1]);
    if (kSplit) low[j] = low_part(to.high[k][j], pairs[j][0], pairs[j][1]);
  }
  if (kSplit) to.low[k * kThreads] = make_uint4(low[0], low[1], low[2], low[3]);
}

// Reads matrix `layer` of `hidden` [3, H, H]; TURNED: its transpose.
template <class Units, bool TURNED>
DDVI_INLINE void load_matrix(Matrix &to, const float *hidden, int layer, uint4 *dynamic, int warp, int lane) {
  const float *matrix = hidden + layer * kHidden * kHidden;
  const int unit = Units::unit(warp, lane / 4), column = 2 * (lane % 4);
  to.low = dynamic + layer * kDepth * kThreads + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    float pairs[4][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int inner = 16 * k + 8 * half + column;
      if (TURNED) {
        const float2 a = *(const float2 *)(matrix + inner * kHidden + unit), b = *(const float2 *)(matrix + (inner + 1) * kHidden + unit);
        pairs[2 * half][0] = a.x, pairs[2 * half][1] = b.x, pairs[2 * half + 1][0] = a.y, pairs[2 * half + 1][1] = b.y;
      } else {
        const float2 a = *(const float2 *)(matrix + unit * kHidden + inner), b = *(const float2 *)(matrix + (unit + 1) * kHidden + inner);
        pairs[2 * half][0] = a.x, pairs[2 * half][1] = a.y, pairs[2 * half + 1][0] = b.x, pairs[2 * half + 1][1] = b.y;
      }
    }
    keep(to, k, pairs);
  }
}

// Stores a lane's four numbers.
template <class Units>
DDVI_INLINE void store(const Addresses<Units> &at, const float (&v)[4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32 high = pack(v[2 * j], v[2 * j + 1]), address = at.stored + Units::second * 16 * j;
    store_shared(address, high);
    if (kSplit) store_shared(address + Activations<Units>::plane, low_part(high, v[2 * j], v[2 * j + 1]));
  }
}

template <class Units>
DDVI_INLINE void load_activations(uint32 (&x)[kDepth][2], uint32 address) {
#pragma unroll
  for (int q = 0; q < kDepth / 2; ++q) {
    uint32 four[4];
    load_transposed(four, address + Units::part(q) * 16);
    x[2 * q][0] = four[0], x[2 * q][1] = four[1], x[2 * q + 1][0] = four[2], x[2 * q + 1][1] = four[3];
  }
}

// sum += matrix x. Several short sums instead of a long one, because a product waits for the last one of its sum.
template <class Units>
DDVI_INLINE void add_product(float (&sum)[4], const Matrix &matrix, const Addresses<Units> &at) {
  uint32 x[kDepth][2];
  load_activations<Units>(x, at.loaded);
  if constexpr (!kSplit) {
    float more[3][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const int chain = k * 4 / kDepth;
      multiply_add(chain == 0 ? sum : more[chain - 1], matrix.high[k], x[k][0], x[k][1]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += more[0][j] + (more[1][j] + more[2][j]);
  } else {
    uint32 y[kDepth][2];
    load_activations<Units>(y, at.loaded + Activations<Units>::plane);
    float more[4] = {}, low[4][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const int half = k * 2 / kDepth;
      multiply_add(half ? more : sum, matrix.high[k], x[k][0], x[k][1]);
      multiply_add(low[half], matrix.high[k], y[k][0], y[k][1]);
      const uint4 word = matrix.low[k * kThreads];
      const uint32 rest[4] = {word.x, word.y, word.z, word.w};
      multiply_add(low[2 + half], rest, x[k][0], x[k][1]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += more[j] + ((low[0][j] + low[1][j]) + (low[2][j] + low[3][j])) * (1.0f / kLowScale);
  }
}
