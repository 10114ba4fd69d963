// Arrays of words, uniforms or normals, and forward noising. Included once per instruction set.

#include "simd.h"
#include "rng.h"

// Calls `write(row, first column, quad)` for every block of four words; kLanes rows at a time.
template <class Write>
void each_quad(const FillArguments& f, int64_t plane, const Write& write) {
  const int64_t groups = (f.rows + kLanes - 1) / kLanes, chunk = 64;
  ddvi::parallel_for(f.threads, (groups + chunk - 1) / chunk, [&](int64_t item) {
    for (int64_t group = item * chunk; group < std::min(groups, (item + 1) * chunk); ++group) {
      int32_t low[kLanes], high[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const uint64_t index = f.draws.index(group * kLanes + i);
        low[i] = (int32_t)(uint32_t)index;
        high[i] = (int32_t)(uint32_t)(index >> 32);
      }
      for (int64_t block = 0; block < (f.width + 3) / 4; ++block)
        write(group * kLanes, 4 * block, philox((vu)load(low), (vu)load(high), (uint32_t)block, (uint32_t)(f.stream + plane), f.draws.seed));
    }
  });
}

// Lanes of up to four columns into rows of (rows, width).
template <class Vector, class Element>
DDVI_INLINE void write_rows(const FillArguments& f, int64_t row, int64_t column, const Vector* values, Element* out) {
  const int64_t lanes = std::min<int64_t>(kLanes, f.rows - row), columns = std::min<int64_t>(4, f.width - column);
  for (int64_t i = 0; i < lanes; ++i)
    for (int64_t d = 0; d < columns; ++d) out[(row + i) * f.width + column + d] = (Element)values[d][i];
}

inline void fill(const FillArguments& f, int64_t kind, void* out) {
  for (int64_t plane = 0; plane < f.planes; ++plane)
    each_quad(f, plane, [&](int64_t row, int64_t column, const Quad& quad) {
      const int64_t start = plane * f.rows * f.width;
      if (kind == kWords) return write_rows(f, row, column, quad.word, (int64_t*)out + start);
      if (kind == kNormals) {
        const Normals made = to_normals(quad);
        return write_rows(f, row, column, made.value, (float*)out + start);
      }
      vf uniforms[4];
      for (int i = 0; i < 4; ++i) uniforms[i] = to_uniform(quad.word[i]);
      write_rows(f, row, column, uniforms, (float*)out + start);
    });
}

// y = signal[t] x0 + deviation[t] noise, a row at a time.
inline void add_noise(const float* x0, const int64_t* t, const float* signal, const float* deviation, const float* noise, int64_t rows, int64_t width,
                      int64_t threads, float* out) {
  const int64_t chunk = 1024;
  ddvi::parallel_for(threads, (rows + chunk - 1) / chunk, [&](int64_t item) {
    for (int64_t row = item * chunk; row < std::min(rows, (item + 1) * chunk); ++row) {
      const float a = signal[t[row]], s = deviation[t[row]];
      for (int64_t d = 0; d < width; ++d) out[row * width + d] = a * x0[row * width + d] + s * noise[row * width + d];
    }
  });
}
