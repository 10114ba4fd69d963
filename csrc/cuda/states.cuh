// States [8 rows, D] across the lanes of a warp, and the first and the last layer, whose factors are states and hidden units.
//
// Every warp has all states: lane `8 d % 32 + row` has coordinates d, d + 4, d + 8, ... of a row. With one or two coordinates lanes 16 to 31 have
// the same as lanes 0 to 15.
#pragma once

#include "instructions.cuh"

constexpr int kCopies = kLatent <= 2 ? 2 : 1;            // lanes with the same state
constexpr int kOwn = (kLatent + 3) / 4;                  // numbers of a lane
constexpr int kStates = kCopies == 2 ? 16 : 32 * kOwn;   // numbers of a warp, with those beyond D
constexpr bool kFull = kLatent == 2 || kLatent % 4 == 0;  // no lane has numbers beyond D
constexpr int kPadded = kLatent <= 1 ? 1 : kLatent <= 2 ? 2 : kLatent <= 4 ? 4 : kLatent <= 8 ? 8 : 16;

struct Place {
  int lane;

  DDVI_INLINE int row() const { return lane % 8; }
  DDVI_INLINE int coordinate(int own) const { return lane / 8 % (4 / kCopies) + 4 * own; }
  DDVI_INLINE bool exists(int own) const { return kFull || coordinate(own) < kLatent; }
  DDVI_INLINE int state(int own) const { return 8 * coordinate(own) + row(); }  // in arrays [D][8]
  DDVI_INLINE bool writes() const { return kCopies == 1 || lane < 16; }
};

// Sum over a warp's states of a number of every lane.
DDVI_INLINE float sum_of_states(float value) {
#pragma unroll
  for (int mask = 1; mask < 32 / kCopies; mask *= 2) value += exchange(value, mask);
  return value;
}

// Sum over the coordinates of a row.
DDVI_INLINE float sum_of_row(float value) {
#pragma unroll
  for (int mask = 8; mask < 32 / kCopies; mask *= 2) value += exchange(value, mask);
  return value;
}

// Adds what the states contribute to units of lane 4 g + t: weights[j][d] of unit j, for rows 2 t and 2 t + 1 as in `multiply_add`.
DDVI_INLINE void add_states(float (&sum)[4], const float (&weights)[2][kLatent], const float (&states)[kOwn], int lane) {
#pragma unroll
  for (int d = 0; d < kLatent; ++d)
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float state = from_lane(states[d / 4], 8 * (d % 4) + 2 * (lane % 4) + q);
      sum[q] += weights[0][d] * state;
      sum[2 + q] += weights[1][d] * state;
    }
}

// Sums over the units of each warp, [D][8 rows] by warps; warps are shuffled so that storing has no bank conflicts.
struct alignas(16) WarpSums {
  float value[kStates][kWarps];

  static DDVI_INLINE int place(int state, int warp) { return warp ^ state / (32 / kWarps) % kWarps; }
};

// Sums over units of weights[j][d] v: first over the lane's two, then over the eight lanes of a row, halving what each still sums.
DDVI_INLINE void sum_over_units(WarpSums &to, const float (&weights)[2][kLatent], const float (&v)[4], int warp, int lane) {
  float part[2 * kPadded];  // [D][2 rows]
#pragma unroll
  for (int d = 0; d < kPadded; ++d)
#pragma unroll
    for (int q = 0; q < 2; ++q) part[2 * d + q] = d < kLatent ? weights[0][d % kLatent] * v[q] + weights[1][d % kLatent] * v[2 + q] : 0.0f;
  int count = 2 * kPadded, first = 0;
#pragma unroll
  for (int mask = 16; mask >= 4; mask /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = lane & mask;
#pragma unroll
      for (int k = 0; k < count; ++k) {
        const float kept = upper ? part[k + count] : part[k], given = upper ? part[k] : part[k + count];
        part[k] = kept + exchange(given, mask);
      }
      if (upper) first += count;
    } else {
      part[0] += exchange(part[0], mask);
    }
  }
#pragma unroll
  for (int k = 0; k < (kPadded > 4 ? kPadded / 4 : 1); ++k) {
    const int d = (first + k) / 2, state = 8 * d + 2 * (lane % 4) + (first + k) % 2;
    if (kPadded == kLatent || d < kLatent) to.value[state][WarpSums::place(state, warp)] = part[k];
  }
}

// The sums over all warps of this lane's numbers, after a barrier.
DDVI_INLINE void total(float (&sums)[kOwn], const WarpSums &of, const Place &place) {
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    constexpr int length = kWarps / kCopies;
    const float *from = of.value[place.state(own)] + (kCopies == 2 ? place.lane / 16 * length : 0);
    float sum;
    if constexpr (length == 2) {
      const float2 v = *(const float2 *)from;
      sum = v.x + v.y;
    } else {
      const float4 v = *(const float4 *)from;
      sum = (v.x + v.y) + (v.z + v.w);
      if constexpr (length == 8) {
        const float4 w = *(const float4 *)(from + 4);
        sum += (w.x + w.y) + (w.z + w.w);
      }
    }
    if (kCopies == 2) sum += exchange(sum, 16);
    sums[own] = sum;
  }
}
