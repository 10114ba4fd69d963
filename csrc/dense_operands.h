// Conversion of a dense layer's arrays to operands of products, in each of the two precisions. Included once per instruction set.
//
// Activations are stored feature-major in panels of kTile samples, so that weights are used in place or after a cheap copy of a few
// columns. Padding is zero wherever a product reads it.

constexpr int64_t kChunk = 48;  // features of one piece of work: whole blocks of 12 rows, whole vectors of 3

struct Operand {
  const float* data;
  int64_t row_stride, column_stride, depth;
};

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Up to kTile rows of an array (.., width) that begin at `data`.
struct RowBlock {
  const float* data;
  int64_t width, samples;

  const float* row(int64_t r) const { return data + r * width; }
  // Values from `column` on, zero where the array has none.
  DDVI_INLINE vf get(int64_t r, int64_t column) const {
    return r < samples && column < width ? load_some(row(r) + column, width - column) : vf{};
  }
};

struct DenseFloat32 {
  using Precision = Float32;
  using Op = MultiplyAdd;

  static int64_t chunk_floats(int64_t depth) { return kChunk * depth; }

  // Panel (width, kTile) of rows.
  static void turn(const RowBlock& rows, float* scratch, float* panel) {
    for (int64_t column = 0; column < rows.width; column += 16) {
      for (int64_t r = 0; r < kTile; ++r)
        for (int64_t c = 0; c < 16; c += kLanes) store(scratch + r * 16 + c, rows.get(r, column + c));
      transpose(scratch, 16, kTile, 16, panel + column * kTile, kTile);
    }
  }

  // Rows [first, first + count) of a weight (.., inputs), in place.
  static Operand weight_rows(const float* weight, int64_t inputs, int64_t first, int64_t, float*) { return {weight + first * inputs, inputs, 1, inputs}; }

  // Columns [first, first + kChunk) of a weight (outputs, inputs), as rows of the transposed one.
  static Operand weight_columns(const float* weight, int64_t inputs, int64_t outputs, int64_t first, float* scratch) {
    for (int64_t m = 0; m < outputs; ++m)
      for (int64_t c = 0; c < kChunk; c += kLanes)
        store(scratch + m * kChunk + c, first + c < inputs ? load_some(weight + m * inputs + first + c, inputs - first - c) : vf{});
    return {scratch, 1, kChunk, outputs};
  }

  // Columns [first, first + kChunk) of rows, (kTile, kChunk), for products over samples.
  static void columns_of(const RowBlock& rows, int64_t first, float* out) {
    for (int64_t r = 0; r < kTile; ++r)
      for (int64_t c = 0; c < kChunk; c += kLanes) store(out + r * kChunk + c, rows.get(r, first + c));
  }
  // Rows [first, ..) of a panel, for products over samples, and all of it, for products over features.
  static Operand over_samples(const Float32::Panel& panel, int64_t first) { return {panel.data + first * kTile, kTile, 1, kTile}; }
  static const float* over_features(const Float32::Panel& panel) { return panel.data; }
};

#if DDVI_LEVEL == 3
struct DenseBFloat16 {
  using Precision = BFloat16;
  using Op = PairDot;

  static int64_t chunk_floats(int64_t depth) { return kChunk * round_up(depth, 32) / 2; }

  static DDVI_INLINE __m512i narrow(vf low, vf high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
  // Pairs (a[i], b[i]) of bf16.
  static DDVI_INLINE vf interleave(vf a, vf b) {
    const __m512i both = narrow(a, b);
    const __m512i even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), odd = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    return (vf)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
  }

  static void turn(const RowBlock& rows, float* scratch, float* panel) {
    for (int64_t column = 0; column < rows.width; column += 32) {
      for (int64_t r = 0; r < kTile; ++r) store(scratch + r * 16, (vf)narrow(rows.get(r, column), rows.get(r, column + 16)));
      transpose(scratch, 16, kTile, 16, panel + column / 2 * kTile, kTile);
    }
  }

  static Operand weight_rows(const float* weight, int64_t inputs, int64_t first, int64_t count, float* scratch) {
    const int64_t stride = round_up(inputs, 32) / 2;
    const RowBlock rows{weight + first * inputs, inputs, count};
    for (int64_t m = 0; m < count; ++m)
      for (int64_t k = 0; k < inputs; k += 32) store(scratch + m * stride + k / 2, (vf)narrow(rows.get(m, k), rows.get(m, k + 16)));
    return {scratch, stride, 1, (inputs + 1) / 2};
  }

  static Operand weight_columns(const float* weight, int64_t inputs, int64_t outputs, int64_t first, float* scratch) {
    const RowBlock rows{weight, inputs, outputs};
    for (int64_t m = 0; m < outputs; m += 2)
      for (int64_t c = 0; c < kChunk; c += 16) store(scratch + m / 2 * kChunk + c, interleave(rows.get(m, first + c), rows.get(m + 1, first + c)));
    return {scratch, 1, kChunk, (outputs + 1) / 2};
  }

  static void columns_of(const RowBlock& rows, int64_t first, float* out) {
    for (int64_t r = 0; r < kTile; r += 2)
      for (int64_t c = 0; c < kChunk; c += 16) store(out + r / 2 * kChunk + c, interleave(rows.get(r, first + c), rows.get(r + 1, first + c)));
  }
  static Operand over_samples(const BFloat16::Panel& panel, int64_t first) {
    return {(const float*)(panel.rows + first * kTile), kTile / 2, 1, kTile / 2};
  }
  static const float* over_features(const BFloat16::Panel& panel) { return panel.pairs; }
};
#else
// The operands of float32 products, rounded to bf16.
struct DenseBFloat16 : DenseFloat32 {
  using Precision = BFloat16;

  static void round(float* values, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store_some(values + i, to_bf16(load_some(values + i, count - i)), count - i);
  }

  static void turn(const RowBlock& rows, float* scratch, float* panel) {
    DenseFloat32::turn(rows, scratch, panel);
    round(panel, round_up(rows.width, 16) * kTile);
  }

  static Operand weight_rows(const float* weight, int64_t inputs, int64_t first, int64_t count, float* scratch) {
    std::memcpy(scratch, weight + first * inputs, count * inputs * sizeof(float));
    round(scratch, count * inputs);
    return {scratch, inputs, 1, inputs};
  }

  static Operand weight_columns(const float* weight, int64_t inputs, int64_t outputs, int64_t first, float* scratch) {
    const Operand columns = DenseFloat32::weight_columns(weight, inputs, outputs, first, scratch);
    round(scratch, outputs * kChunk);
    return columns;
  }

  static void columns_of(const RowBlock& rows, int64_t first, float* out) {
    DenseFloat32::columns_of(rows, first, out);
    round(out, kTile * kChunk);
  }
};
#endif
