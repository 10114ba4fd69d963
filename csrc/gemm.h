// Small matrix products on feature-major tiles: a row per feature, a column per sample.
// Included once per instruction set, after simd.h.
//
// With samples in the lanes, a weight matrix is used in place (its scalars are broadcast) without packing, and biases, activations and
// the state update need no horizontal sums.

// Shapes of a product's blocks. Square ones suit a `b` that stays in the first cache; tall and wide ones read less of a `b` or an `a`
// that does not.
#if DDVI_LEVEL >= 2
constexpr int kBlockRows = 4, kBlockVectors = 4;  // 16 accumulators, 4 operands, of 32 registers
#if DDVI_LEVEL == 2  // measured on Intel without bf16: 1.1 times the speed of 12 x 2, which AMD with bf16 prefers
constexpr int kTallRows = 6, kTallVectors = 4;
#else
constexpr int kTallRows = 12, kTallVectors = 2;
#endif
constexpr int kWideRows = 8, kWideVectors = 3;
#elif DDVI_LEVEL == 1
constexpr int kBlockRows = 6, kBlockVectors = 2;  // 12 accumulators, 2 operands and a scalar, of 16 registers
constexpr int kTallRows = 6, kTallVectors = 2;
constexpr int kWideRows = 6, kWideVectors = 2;
#else
constexpr int kBlockRows = 4, kBlockVectors = 2;  // 8 accumulators, 2 operands and a scalar, of 16 registers
constexpr int kTallRows = 4, kTallVectors = 2;
constexpr int kWideRows = 4, kWideVectors = 2;
#endif

// Operation of a product on a scalar of `a` and a vector of `b`.
struct MultiplyAdd {
  static DDVI_INLINE vf apply(vf acc, vf scalar, vf column) { return acc + scalar * column; }
};

#if DDVI_LEVEL == 3
// Every 32-bit element of `a` and `b` is a pair of bf16 numbers, neighbors along the depth; sums are float32.
struct PairDot {
  static DDVI_INLINE vf apply(vf acc, vf scalar, vf column) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(vi)scalar, (__m512bh)(vi)column); }
};
#endif

// acc[i][j] += sum_k a[i, k] b[k, j], a with strides (row_stride, column_stride).
template <class Op, int ROWS, int VECTORS>
DDVI_INLINE void multiply_block(const float* a, int64_t row_stride, int64_t column_stride, const float* b, int64_t b_stride, int64_t depth,
                                vf (&acc)[ROWS][VECTORS]) {
  for (int64_t k = 0; k < depth; ++k, a += column_stride, b += b_stride) {
    vf column[VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) column[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const vf scalar = spread(a[i * row_stride]);
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) acc[i][j] = Op::apply(acc[i][j], scalar, column[j]);
    }
  }
}

// Calls `epilogue` with the vectors of each column of a block.
template <int ROWS, int VECTORS, class Epilogue>
DDVI_INLINE void put_block(const vf (&acc)[ROWS][VECTORS], int64_t row, int64_t column, const Epilogue& epilogue) {
#pragma GCC unroll 8
  for (int j = 0; j < VECTORS; ++j) {
    vf values[ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) values[i] = acc[i][j];
    epilogue(row, column + j * kLanes, values);
  }
}

template <class Op, int ROWS, int VECTORS, class Epilogue>
DDVI_INLINE void gemm_block(const float* a, int64_t row_stride, int64_t column_stride, const float* b, int64_t b_stride, int64_t depth, int64_t row,
                            int64_t column, const Epilogue& epilogue) {
  vf acc[ROWS][VECTORS] = {};
  multiply_block<Op, ROWS, VECTORS>(a + row * row_stride, row_stride, column_stride, b + column, b_stride, depth, acc);
  put_block(acc, row, column, epilogue);
}

template <class Op, int ROWS, int VECTORS, class Epilogue>
inline void gemm_strip(const float* a, int64_t row_stride, int64_t column_stride, const float* b, int64_t b_stride, int64_t rows, int64_t depth,
                       int64_t column, const Epilogue& epilogue) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) gemm_block<Op, ROWS, VECTORS>(a, row_stride, column_stride, b, b_stride, depth, row, column, epilogue);
  if constexpr (ROWS > 4)
    for (; row + 4 <= rows; row += 4) gemm_block<Op, 4, VECTORS>(a, row_stride, column_stride, b, b_stride, depth, row, column, epilogue);
  for (; row + 2 <= rows; row += 2) gemm_block<Op, 2, VECTORS>(a, row_stride, column_stride, b, b_stride, depth, row, column, epilogue);
  for (; row < rows; ++row) gemm_block<Op, 1, VECTORS>(a, row_stride, column_stride, b, b_stride, depth, row, column, epilogue);
}

// For every block of the product a [rows, depth] b [depth, columns] call `epilogue(row, column, values)` with one vector for each
// of the block's rows. `columns` counts floats and is rounded up to whole vectors; b must be readable that far.
template <class Op, int ROWS = kBlockRows, int VECTORS = kBlockVectors, class Epilogue>
inline void gemm(const float* a, int64_t row_stride, int64_t column_stride, const float* b, int64_t b_stride, int64_t rows, int64_t depth,
                 int64_t columns, const Epilogue& epilogue, int64_t column = 0) {
  for (; column + (VECTORS - 1) * kLanes < columns; column += VECTORS * kLanes)
    gemm_strip<Op, ROWS, VECTORS>(a, row_stride, column_stride, b, b_stride, rows, depth, column, epilogue);
  if constexpr (VECTORS > 1)
    if (column < columns) gemm<Op, ROWS, VECTORS - 1>(a, row_stride, column_stride, b, b_stride, rows, depth, columns, epilogue, column);
}

// out [columns, rows] = transpose of rows anywhere in memory: `in(r)` points to row r. 32-bit elements, both sizes multiples of 16.
template <class Element, class Rows>
inline void transpose_rows(const Rows& in, int64_t rows, int64_t columns, Element* out, int64_t out_stride) {
  static_assert(sizeof(Element) == 4, "32-bit elements");
#if DDVI_LEVEL >= 2
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 4) {
      // 128-bit lane l of q[i] holds row 4 l + i, so that shuffles inside lanes give the 16 rows in order.
      __m512 q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        auto quad = [&](int64_t row) DDVI_INLINE_CLOSURE { return _mm_loadu_ps(reinterpret_cast<const float*>(in(row) + c)); };
        __m512 v = _mm512_castps128_ps512(quad(r + i));
        v = _mm512_insertf32x4(v, quad(r + i + 4), 1);
        v = _mm512_insertf32x4(v, quad(r + i + 8), 2);
        q[i] = _mm512_insertf32x4(v, quad(r + i + 12), 3);
      }
      const __m512 a = _mm512_unpacklo_ps(q[0], q[1]), b = _mm512_unpackhi_ps(q[0], q[1]);
      const __m512 d = _mm512_unpacklo_ps(q[2], q[3]), e = _mm512_unpackhi_ps(q[2], q[3]);
      float* target = reinterpret_cast<float*>(out + c * out_stride + r);
      _mm512_storeu_ps(target, (__m512)_mm512_shuffle_ps(a, d, 0x44));
      _mm512_storeu_ps(target + out_stride, (__m512)_mm512_shuffle_ps(a, d, 0xee));
      _mm512_storeu_ps(target + 2 * out_stride, (__m512)_mm512_shuffle_ps(b, e, 0x44));
      _mm512_storeu_ps(target + 3 * out_stride, (__m512)_mm512_shuffle_ps(b, e, 0xee));
    }
#elif DDVI_LEVEL == 1
  for (int64_t r = 0; r < rows; r += 8)
    for (int64_t c = 0; c < columns; c += 4) {
      __m256 q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        auto quad = [&](int64_t row) DDVI_INLINE_CLOSURE { return _mm_loadu_ps(reinterpret_cast<const float*>(in(row) + c)); };
        q[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(quad(r + i)), quad(r + i + 4), 1);
      }
      const __m256 a = _mm256_unpacklo_ps(q[0], q[1]), b = _mm256_unpackhi_ps(q[0], q[1]);
      const __m256 d = _mm256_unpacklo_ps(q[2], q[3]), e = _mm256_unpackhi_ps(q[2], q[3]);
      float* target = reinterpret_cast<float*>(out + c * out_stride + r);
      _mm256_storeu_ps(target, _mm256_shuffle_ps(a, d, 0x44));
      _mm256_storeu_ps(target + out_stride, _mm256_shuffle_ps(a, d, 0xee));
      _mm256_storeu_ps(target + 2 * out_stride, _mm256_shuffle_ps(b, e, 0x44));
      _mm256_storeu_ps(target + 3 * out_stride, _mm256_shuffle_ps(b, e, 0xee));
    }
#else
  typedef Element quad __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t order __attribute__((vector_size(16)));
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t c = 0; c < columns; c += 4) {
      quad q[4];
      for (int i = 0; i < 4; ++i) q[i] = *reinterpret_cast<const quad*>(in(r + i) + c);
      const quad a = __builtin_shuffle(q[0], q[1], order{0, 4, 1, 5}), b = __builtin_shuffle(q[0], q[1], order{2, 6, 3, 7});
      const quad d = __builtin_shuffle(q[2], q[3], order{0, 4, 1, 5}), e = __builtin_shuffle(q[2], q[3], order{2, 6, 3, 7});
      *reinterpret_cast<quad*>(out + c * out_stride + r) = __builtin_shuffle(a, d, order{0, 1, 4, 5});
      *reinterpret_cast<quad*>(out + (c + 1) * out_stride + r) = __builtin_shuffle(a, d, order{2, 3, 6, 7});
      *reinterpret_cast<quad*>(out + (c + 2) * out_stride + r) = __builtin_shuffle(b, e, order{0, 1, 4, 5});
      *reinterpret_cast<quad*>(out + (c + 3) * out_stride + r) = __builtin_shuffle(b, e, order{2, 3, 6, 7});
    }
#endif
}

// out [columns, rows] = transpose of in [rows, columns].
template <class Element>
inline void transpose(const Element* in, int64_t in_stride, int64_t rows, int64_t columns, Element* out, int64_t out_stride) {
  transpose_rows([&](int64_t row) DDVI_INLINE_CLOSURE { return in + row * in_stride; }, rows, columns, out, out_stride);
}
