// A vector of DDVI_LANES floats and the elementary functions on it. Included once per instruction set, inside its namespace.
//
// Built on the compiler's vector extension: one source serves every width, and a multiply followed by an add contracts to an FMA
// where there is one. Polynomials were fitted for this file (relative error below 1e-8, so that rounding dominates).


constexpr int kLanes = DDVI_LANES;
typedef float vf __attribute__((vector_size(4 * DDVI_LANES)));
typedef float vf_loose __attribute__((vector_size(4 * DDVI_LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * DDVI_LANES)));
typedef int32_t vi_loose __attribute__((vector_size(4 * DDVI_LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * DDVI_LANES)));

DDVI_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_loose*>(p); }
DDVI_INLINE vi load(const int32_t* p) { return *reinterpret_cast<const vi_loose*>(p); }
DDVI_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_loose*>(p) = v; }
DDVI_INLINE void store(int32_t* p, vi v) { *reinterpret_cast<vi_loose*>(p) = v; }
#if DDVI_LEVEL >= 2
DDVI_INLINE vf spread(float x) { return (vf)_mm512_set1_ps(x); }
#else
DDVI_INLINE vf spread(float x) { return x - vf{}; }
#endif
DDVI_INLINE vi spread(int32_t x) { return x - vi{}; }
DDVI_INLINE vu spread(uint32_t x) { return x + vu{}; }
DDVI_INLINE vf where(vi mask, vf a, vf b) { return mask ? a : b; }
// Where one of them is NaN, the result is b: a bound stands first, so that a NaN stays one.
DDVI_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
DDVI_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
DDVI_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
DDVI_INLINE vf relu(vf a) { return max(vf{}, a); }

// The first `count` floats, zero beyond them: a tail never reads past its array.
DDVI_INLINE vf load_first(const float* p, int count, float fill = 0.0f) {
#if DDVI_LEVEL >= 2
  return (vf)_mm512_mask_loadu_ps((__m512)spread(fill), (__mmask16)((1u << count) - 1), p);
#else
  float all[kLanes];
  for (int i = 0; i < kLanes; ++i) all[i] = i < count ? p[i] : fill;
  return load(all);
#endif
}

DDVI_INLINE void store_first(float* p, vf v, int count) {
#if DDVI_LEVEL >= 2
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

DDVI_INLINE vf load_some(const float* p, int64_t left) { return left >= kLanes ? load(p) : load_first(p, (int)left); }
DDVI_INLINE void store_some(float* p, vf v, int64_t left) { left >= kLanes ? store(p, v) : store_first(p, v, (int)left); }

// Halves are added pairwise, so that every width sums in a fixed order.
DDVI_INLINE float sum(vf v) {
#if DDVI_LEVEL >= 2
  return _mm512_reduce_add_ps((__m512)v);
#endif
  float all[kLanes];
  store(all, v);
  for (int width = kLanes / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) all[i] += all[i + width];
  return all[0];
}

DDVI_INLINE float lowest(vf v) {
  float all[kLanes];
  store(all, v);
  for (int width = kLanes / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) all[i] = all[i + width] < all[i] ? all[i + width] : all[i];
  return all[0];
}

DDVI_INLINE bool any(vi mask) {
#if DDVI_LEVEL >= 2
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif DDVI_LEVEL == 1
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

DDVI_INLINE vf sqrt(vf a) {
#if DDVI_LEVEL >= 2
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif DDVI_LEVEL == 1
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// e^x; zero below the smallest normal number, infinite above the largest.
DDVI_INLINE vf exp(vf x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const vf bounded = min(max(x, spread(-87.33654f)), spread(88.72283f));
  const vf shifted = bounded * 1.44269504088896341f + magic;
  const vf n = shifted - magic;
  const vf r = (bounded - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  const vf p = (((0.00139505f * r + 0.00836888f) * r + 0.04166621f) * r + 0.16666519f) * r + 0.50000001f;
  const vf value = (p * r) * r + r + 1.0f;
  // Two factors of half the power each: n reaches 128, which a single exponent field does not hold.
  const vi whole = (vi)shifted - 0x4b400000, half = whole >> 1;
  const vf scaled = value * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
  const vf low = where(x < -87.33654f, vf{}, scaled);
  const vf high = where(x > 88.72283f, spread(__builtin_inff()), low);
  return where(x != x, x, high);
}

// ln x for positive normal x; zero, infinities and NaN are not handled.
DDVI_INLINE vf log(vf x) {
  const vi bits = (vi)x - 0x3f3504f3;  // sqrt(1/2), so that the mantissa lands in [sqrt(1/2), sqrt(2))
  const vf n = __builtin_convertvector(bits >> 23, vf);
  const vf r = (vf)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const vf low = (0.14181195f * r - 0.16624553f) * r + 0.20002286f;
  const vf high = (-0.07859554f * r + 0.12881635f) * r - 0.1312877f;
  const vf p = ((high * (r * r * r) + low) * r - 0.2500081f) * r + 0.33333317f;
  const vf square = r * r;
  const vf tail = (square * r) * p + n * 1.42860682030941723e-6f - 0.5f * square;
  return n * 0.693145751953125f + (r + tail);
}

// ln x for every x: -infinite at zero, NaN below it; subnormal numbers are scaled to normal ones first.
DDVI_INLINE vf log_any(vf x) {
  const vi small = x < 1.17549435e-38f;
  const vf value = log(where(small, x * 8388608.0f, x)) - where(small, spread(15.9423851528f), vf{});
  const vf edge = where(x == vf{}, spread(-__builtin_inff()), where(x > vf{}, x, spread(__builtin_nanf(""))));
  return where((x > vf{}) & (x < __builtin_inff()), value, edge);
}

// ln(1 + x) for x in [0, 1], with the relative accuracy that log(1 + x) loses at small x.
DDVI_INLINE vf log1p_unit(vf x) {
  const vf y = x + 1.0f;
  return log(y) + (x - (y - 1.0f)) / y;
}

// cos and sin of 2 pi u for u in [0, 1]. Multiples of a quarter turn are subtracted first, without rounding.
DDVI_INLINE void cos_sin_turns(vf u, vf& cosine, vf& sine) {
  const vf magic = spread(12582912.0f);
  const vf shifted = u * 4.0f + magic;
  const vi quarter = (vi)shifted;
  const vf r = (u - (shifted - magic) * 0.25f) * 6.28318530717958648f;
  const vf s = r * r;
  const vf odd = ((-0.00019517f * s + 0.00833218f) * s - 0.16666655f) * (s * r) + r;
  const vf even = ((2.44384489e-05f * s - 1.38873675e-03f) * s + 4.16666469e-02f) * (s * s) + (1.0f - 0.5f * s);
  const vi swapped = (quarter & 1) != 0;
  const vi cosine_sign = ((quarter + 1) & 2) << 30, sine_sign = (quarter & 2) << 30;
  cosine = (vf)((vi)where(swapped, odd, even) ^ cosine_sign);
  sine = (vf)((vi)where(swapped, even, odd) ^ sine_sign);
}
