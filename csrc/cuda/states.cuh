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

// The weights between a lane's two units and each coordinate, in registers.
struct HeldWeights {
  float2 of[kLatent];

  DDVI_INLINE float2 operator[](int d) const { return of[d]; }
};

// The same, read from an array [D][H] in shared memory where registers are few.
struct SharedWeights {
  const float *of;

  DDVI_INLINE float2 operator[](int d) const { return *(const float2 *)(of + d * kHidden); }
};

constexpr bool kShareSummed = kLatent > 4, kShareAdded = kLatent > 8;  // the weights of `sum_over_units` and of `add_states`

template <bool share>
using SharedLayer = float[share ? kLatent : 1][kHidden];

// The weights that a layer takes.
template <bool share>
DDVI_INLINE const auto &choose(const SharedWeights &shared, const HeldWeights &held) {
  if constexpr (share) {
    return shared;
  } else {
    return held;
  }
}

// Adds what the states contribute to units of lane 4 g + t, for rows 2 t and 2 t + 1 as in `multiply_add`.
template <class Weights>
DDVI_INLINE void add_states(float (&sum)[4], const Weights &weights, const float (&states)[kOwn], int lane) {
#pragma unroll
  for (int d = 0; d < kLatent; ++d) {
    const float2 w = weights[d];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float state = from_lane(states[d / 4], 8 * (d % 4) + 2 * (lane % 4) + q);
      sum[q] += w.x * state;
      sum[2 + q] += w.y * state;
    }
  }
}

// Sums over the units of each warp, [D][8 rows] by warps; warps are shuffled so that storing has no bank conflicts.
struct alignas(16) WarpSums {
  float value[kStates][kWarps];

  static DDVI_INLINE int place(int state, int warp) { return warp ^ state / (32 / kWarps) % kWarps; }
};

// Adds numbers over the eight lanes of a row, of which each gets a share of the sums in `part[0]` on: halves are exchanged. Returns the place
// of the first.
template <int count, int mask>
DDVI_INLINE int share_sums(float (&part)[2 * kPadded], int lane) {
  if constexpr (mask < 4) {
    return 0;
  } else if constexpr (count == 1) {
    part[0] += exchange(part[0], mask);
    return share_sums<1, mask / 2>(part, lane);
  } else {
    constexpr int half = count / 2;
    const bool upper = lane & mask;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const float kept = upper ? part[k + half] : part[k], given = upper ? part[k] : part[k + half];
      part[k] = kept + exchange(given, mask);
    }
    return (upper ? half : 0) + share_sums<half, mask / 2>(part, lane);
  }
}

// Sums over a warp's units of weights[d] v.
template <class Weights>
DDVI_INLINE void sum_over_units(WarpSums &to, const Weights &weights, const float (&v)[4], int warp, int lane) {
  float part[2 * kPadded] = {};  // [D][2 rows]
#pragma unroll
  for (int d = 0; d < kLatent; ++d) {
    const float2 w = weights[d];
#pragma unroll
    for (int q = 0; q < 2; ++q) part[2 * d + q] = w.x * v[q] + w.y * v[2 + q];
  }
  const int first = share_sums<2 * kPadded, 16>(part, lane);
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
