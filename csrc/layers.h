// The two precisions of the hidden layers: float32, and bf16 products with float32 sums. Included once per instruction set.
// A processor without bf16 dot products emulates them: it rounds the operands to bf16 and multiplies in float32.
//
// A Panel holds one activation [H, kTile] of a tile of samples; a Matrix is one hidden weight [H, H].

constexpr int64_t kTile = 64;

typedef uint16_t half_word __attribute__((may_alias));

struct Float32 {
  struct Matrix {
    const float* data;  // (H, H)
  };

  struct Panel {
    float* data;  // (H, kTile)

    template <int ROWS>
    DDVI_INLINE void put(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) store(data + (row + i) * kTile + column, values[i]);
    }
    DDVI_INLINE vf get(int64_t row, int64_t column) const { return load(data + row * kTile + column); }
  };

  static int64_t panel_floats(int64_t hidden) { return hidden * kTile; }
  static Panel panel(float* memory, int64_t, bool) { return {memory}; }
  static int64_t packed_floats(int64_t) { return 0; }
  static void pack(const float*, int64_t, bool, float*) {}
  static Matrix matrix(const float* weight, const float*, int64_t) { return {weight}; }

  // weight times panel
  template <class Epilogue>
  static void forward(const Matrix& weight, int64_t hidden, const Panel& in, int64_t columns, const Epilogue& epilogue) {
    gemm<MultiplyAdd>(weight.data, hidden, 1, in.data, kTile, hidden, hidden, columns, epilogue);
  }

  // transposed weight times panel
  template <class Epilogue>
  static void backward(const Matrix& weight, int64_t hidden, const Panel& in, int64_t columns, const Epilogue& epilogue) {
    gemm<MultiplyAdd>(weight.data, 1, hidden, in.data, kTile, hidden, hidden, columns, epilogue);
  }

  // gradient (H, H) += upstream times transposed activation, summed over samples; `turned` is scratch (kTile, H)
  static void accumulate(const Panel& upstream, const Panel& activation, int64_t hidden, int64_t samples, float* turned, float* gradient) {
    transpose(activation.data, kTile, hidden, (samples + 15) / 16 * 16, turned, hidden);
    accumulate_rows(upstream.data, hidden, turned, hidden, samples, gradient);
  }

  // gradient (rows, H) += left (rows, kTile) times turned (samples, H)
  static void accumulate_rows(const float* left, int64_t rows, const float* turned, int64_t hidden, int64_t samples, float* gradient) {
    gemm<MultiplyAdd>(left, kTile, 1, turned, hidden, rows, samples, hidden, Add{gradient, hidden});
  }

  struct Add {
    float* target;
    int64_t stride;

    template <int ROWS>
    DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        float* place = target + (row + i) * stride + column;
        store(place, load(place) + values[i]);
      }
    }
  };
};

#if DDVI_LEVEL == 3
struct BFloat16 {
  struct Matrix {
    const float* forward;   // (H, H / 2) pairs of bf16, neighbours along the inputs
    const float* backward;  // packed transposed weight
  };

  struct Panel {
    float* pairs;     // (H / 2, kTile) pairs of neighbouring features: the operand of products over features
    half_word* rows;  // (H, kTile), seen as pairs of neighbouring samples: the operand of products over samples; may be absent

    template <int ROWS>
    DDVI_INLINE void put(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
      if constexpr (ROWS % 2 == 0) {
#pragma GCC unroll 2
        for (int i = 0; i < ROWS; i += 2) {
          const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)values[i + 1], (__m512)values[i]);
          const __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
          const __m512i odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
          _mm512_storeu_si512(pairs + (row + i) / 2 * kTile + column, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
          if (rows == nullptr) continue;
          _mm256_storeu_si256((__m256i*)(rows + (row + i) * kTile + column), _mm512_castsi512_si256(both));
          _mm256_storeu_si256((__m256i*)(rows + (row + i + 1) * kTile + column), _mm512_extracti64x4_epi64(both, 1));
        }
      }
    }
    DDVI_INLINE vf get(int64_t row, int64_t column) const {
      const vi pair = (vi)load(pairs + row / 2 * kTile + column);
      return (vf)(row % 2 == 0 ? pair << 16 : (pair & (int32_t)0xffff0000));
    }
  };

  static int64_t panel_floats(int64_t hidden) { return hidden * kTile; }
  static Panel panel(float* memory, int64_t hidden, bool for_backward) {
    return {memory, for_backward ? (half_word*)(memory + hidden / 2 * kTile) : nullptr};
  }
  static int64_t packed_floats(int64_t hidden) { return hidden * hidden; }
  static constexpr int64_t kStrip = 256;

  static void pack(const float* weight, int64_t hidden, bool for_backward, float* packed) {
    half_word* plain = (half_word*)packed;
    narrow(weight, hidden * hidden, plain);
    if (!for_backward) return;
    float turned[16 * kStrip];
    for (int64_t column = 0; column < hidden; column += 16)
      for (int64_t row = 0; row < hidden; row += kStrip) {
        const int64_t rows = std::min(kStrip, hidden - row);
        transpose(weight + row * hidden + column, hidden, rows, 16, turned, kStrip);
        for (int64_t i = 0; i < 16; ++i) narrow(turned + i * kStrip, rows, plain + (hidden + column + i) * hidden + row);
      }
  }
  static void narrow(const float* in, int64_t count, half_word* out) {
    for (int64_t i = 0; i < count; i += kLanes) _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh((__m512)load(in + i)));
  }
  static Matrix matrix(const float*, const float* packed, int64_t hidden) { return {packed, packed + hidden * hidden / 2}; }

  template <class Epilogue>
  static void forward(const Matrix& weight, int64_t hidden, const Panel& in, int64_t columns, const Epilogue& epilogue) {
    gemm<PairDot>(weight.forward, hidden / 2, 1, in.pairs, kTile, hidden, hidden / 2, columns, epilogue);
  }

  template <class Epilogue>
  static void backward(const Matrix& weight, int64_t hidden, const Panel& in, int64_t columns, const Epilogue& epilogue) {
    gemm<PairDot>(weight.backward, hidden / 2, 1, in.pairs, kTile, hidden, hidden / 2, columns, epilogue);
  }

  // An odd last sample pairs with a padding one, whose upstream gradient is zero.
  static void accumulate(const Panel& upstream, const Panel& activation, int64_t hidden, int64_t samples, float* turned, float* gradient) {
    const int64_t pairs = (samples + 1) / 2;
    transpose((const float*)activation.rows, kTile / 2, hidden, (pairs + 15) / 16 * 16, turned, hidden);
    gemm<PairDot>((const float*)upstream.rows, kTile / 2, 1, turned, hidden, hidden, pairs, hidden, Float32::Add{gradient, hidden});
  }
};
#else
// The nearest bf16 number, ties to even, as a float32. NaN stays NaN.
DDVI_INLINE vf to_bf16(vf value) {
  const vu bits = (vu)value;
  const vf rounded = (vf)((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
  return where(value == value, rounded, value);
}

struct BFloat16 : Float32 {
  struct Panel : Float32::Panel {
    template <int ROWS>
    DDVI_INLINE void put(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) store(data + (row + i) * kTile + column, to_bf16(values[i]));
    }
  };

  static Panel panel(float* memory, int64_t, bool) { return {{memory}}; }
  static int64_t packed_floats(int64_t hidden) { return hidden * hidden; }
  static void pack(const float* weight, int64_t hidden, bool, float* packed) {
    for (int64_t i = 0; i < hidden * hidden; i += kLanes) store(packed + i, to_bf16(load(weight + i)));
  }
  static Matrix matrix(const float*, const float* packed, int64_t) { return {packed}; }
};
#endif
