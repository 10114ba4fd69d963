// Signs of the ReLUs: one bit for each hidden unit, all that a backward pass needs of the activations. The layout is kernels/signs.py's.
//
// int32 [T, .., R, 4, H / 32], for each step (in the order of the trajectory), row and ReLU: 1 where a unit's input is positive or NaN.
// Unit u has bit f % 32 of word f / 32, where f = ((u % 8) / 2) (H / 4) + 2 (u / 8) + u % 2.
#pragma once

#include "instructions.cuh"

constexpr int kSignWords = kHidden / 32;

// The half word w, of 16 bits, has units of which neighbors 2 q and 2 q + 1 are bits of place g: the units of warp w in the forward pass.
DDVI_INLINE int unit_of_halfword(int halfword, int g) {
  constexpr int blocks = kHidden / 64;
  return 8 * (8 * (halfword % blocks) + g) + 2 * (halfword / blocks);
}

DDVI_INLINE int sign_place(int unit) { return (unit % 8) / 2 * (kHidden / 4) + 2 * (unit / 8) + unit % 2; }

// Bits of four sums of lane 4 g + t (units 0 and 1 of rows 2 t and 2 t + 1): its part of the half words of the two rows, first row low.
DDVI_INLINE uint32 sign_bits(const float (&v)[4], int g) {
  uint32 bits = 0;
  if (!(v[0] <= 0.0f)) bits |= 1u;
  if (!(v[1] <= 0.0f)) bits |= 1u << 16;
  if (!(v[2] <= 0.0f)) bits |= 2u;
  if (!(v[3] <= 0.0f)) bits |= 2u << 16;
  return bits << 2 * g;
}

// From the parts of all lanes, for the four ReLUs: the half word of ReLU `2 (lane / 16) + lane / 8 % 2` and row `2 t + lane / 4 % 2`.
DDVI_INLINE uint16 gather_signs(const uint32 (&bits)[4], int lane) {
  const bool upper = lane & 16, odd = lane & 8;
  const uint32 a = (upper ? bits[2] : bits[0]) | exchange(upper ? bits[0] : bits[2], 16);
  const uint32 b = (upper ? bits[3] : bits[1]) | exchange(upper ? bits[1] : bits[3], 16);
  uint32 word = (odd ? b : a) | exchange(odd ? a : b, 8);
  word |= exchange(word, 4);
  return (uint16)(lane & 4 ? word >> 16 : word);
}
