// Conversion of 2-bit genotype codes to bytes, and to floats (code - centre) * scale with a separate value for missing calls. Included
// once per instruction set.

#include "simd.h"

typedef uint8_t vb __attribute__((vector_size(DDVI_LANES)));

// Calls `body(row)` for all rows; a thread takes pieces of about 2^16 codes at a time.
template <class Body>
void each_row(int64_t rows, int64_t count, int64_t threads, const Body& body) {
  const int64_t chunk = std::max<int64_t>(1, (int64_t(1) << 16) / std::max<int64_t>(1, count));
  ddvi::parallel_for(threads, (rows + chunk - 1) / chunk, [&](int64_t item) {
    for (int64_t row = item * chunk; row < std::min(rows, (item + 1) * chunk); ++row) body(row);
  });
}

DDVI_INLINE uint8_t code_at(const uint8_t* packed, int64_t j) { return packed[j >> 2] >> (2 * (j & 3)) & 3; }

// Every byte becomes a 32-bit lane whose four bytes are its four codes, in the order of memory (little endian).
inline void unpack_codes(const uint8_t* packed, int64_t rows, int64_t stride, int64_t count, int64_t threads, uint8_t* codes) {
  each_row(rows, count, threads, [&](int64_t row) {
    const uint8_t* from = packed + row * stride;
    uint8_t* to = codes + row * count;
    int64_t j = 0;
    for (; j + 4 * kLanes <= count; j += 4 * kLanes) {
      vb bytes;
      std::memcpy(&bytes, from + j / 4, sizeof bytes);
      const vu x = __builtin_convertvector(bytes, vu);
      const vu spaced = (x | x << 6 | x << 12 | x << 18) & 0x03030303u;
      std::memcpy(to + j, &spaced, sizeof spaced);
    }
    for (; j < count; ++j) to[j] = code_at(from, j);
  });
}

// kLanes / 4 bytes hold the codes of kLanes lanes: all lanes get the same word, and each shifts its own code down.
inline void unpack_scaled(const uint8_t* packed, const float* centre, const float* scale, const float* missing, int64_t rows, int64_t stride,
                          int64_t count, int64_t threads, float* out) {
  vu shifts;
  for (int i = 0; i < kLanes; ++i) shifts[i] = 2 * i;
  each_row(rows, count, threads, [&](int64_t row) {
    const uint8_t* from = packed + row * stride;
    float* to = out + row * count;
    int64_t j = 0;
    for (; j + kLanes <= count; j += kLanes) {
      uint32_t word = 0;
      std::memcpy(&word, from + j / 4, kLanes / 4);
      const vi code = (vi)(spread(word) >> shifts & 3u);
      const vf value = (__builtin_convertvector(code, vf) - load(centre + j)) * load(scale + j);
      store(to + j, where(code == 3, load(missing + j), value));
    }
    for (; j < count; ++j) {
      const uint8_t code = code_at(from, j);
      to[j] = code == 3 ? missing[j] : ((float)code - centre[j]) * scale[j];
    }
  });
}
