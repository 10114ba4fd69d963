// Philox 4x32-10 on DDVI_LANES counters at once, and random numbers from its words (docs/method.md, section 6).
// Words and uniforms are bit for bit those of ddvi_fast/rng.py. Included once per instruction set, after simd.h.

// Low and high words of the 64-bit products of 32-bit lanes with a constant.
DDVI_INLINE void multiply_wide(vu a, uint32_t constant, vu& low, vu& high) {
  low = a * constant;
#if DDVI_LEVEL >= 2
  const __m512i c = _mm512_set1_epi32((int)constant), v = (__m512i)a;
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(v, c), 32), odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), c);
  high = (vu)_mm512_mask_blend_epi32(0xaaaa, even, odd);
#elif DDVI_LEVEL == 1
  const __m256i c = _mm256_set1_epi32((int)constant), v = (__m256i)a;
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(v, c), 32), odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), c);
  high = (vu)_mm256_blend_epi32(even, odd, 0xaa);
#else
  for (int i = 0; i < kLanes; ++i) high[i] = (uint32_t)(((uint64_t)a[i] * constant) >> 32);
#endif
}

struct Quad {
  vu word[4];
};

DDVI_INLINE Quad philox(vu index_low, vu index_high, uint32_t block, uint32_t stream, uint64_t seed) {
  vu c0 = index_low, c1 = index_high, c2 = spread(block), c3 = spread(stream);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    vu low0, high0, low2, high2;
    multiply_wide(c0, 0xD2511F53u, low0, high0);
    multiply_wide(c2, 0xCD9E8D57u, low2, high2);
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
DDVI_INLINE vf to_uniform(vu words) { return (__builtin_convertvector((vi)(words >> 8), vf) + 0.5f) * 0x1p-24f; }

struct Normals {
  vf value[4];
};

// Two Box-Muller pairs.
DDVI_INLINE Normals to_normals(const Quad& quad) {
  Normals out;
  for (int pair = 0; pair < 2; ++pair) {
    const vf radius = sqrt(-2.0f * log(to_uniform(quad.word[2 * pair])));
    vf cosine, sine;
    cos_sin_turns(to_uniform(quad.word[2 * pair + 1]), cosine, sine);
    out.value[2 * pair] = radius * cosine;
    out.value[2 * pair + 1] = radius * sine;
  }
  return out;
}
