// A tile of samples: its position, transposition of its rows to columns and back, its random numbers. Included once per instruction set.

struct Tile {
  int64_t group, row, samples;
  int64_t columns;  // samples rounded up to whole vectors
};

DDVI_INLINE Tile make_tile(int64_t group, int64_t row, int64_t samples) {
  return {group, row, samples, (samples + kLanes - 1) / kLanes * kLanes};
}

// Columns of samples to and from rows of an array (samples, width); padding columns become zero.
DDVI_INLINE void gather(const float* rows, int64_t samples, int64_t width, float* out) {
  for (int64_t d = 0; d < width; ++d) {
    for (int64_t i = 0; i < samples; ++i) out[d * kTile + i] = rows[i * width + d];
    for (int64_t i = samples; i < kTile; ++i) out[d * kTile + i] = 0.0f;
  }
}

DDVI_INLINE void scatter(const float* columns, int64_t samples, int64_t width, float* rows) {
  for (int64_t d = 0; d < width; ++d)
    for (int64_t i = 0; i < samples; ++i) rows[i * width + d] = columns[d * kTile + i];
}

// Low and high words of the tile's draw indices.
struct TileDraws {
  alignas(64) int32_t low[kTile], high[kTile];

  TileDraws(const Draws& draws, int64_t first_row) {
    for (int64_t i = 0; i < kTile; ++i) {
      const uint64_t index = draws.index(first_row + i);
      low[i] = (int32_t)(uint32_t)index;
      high[i] = (int32_t)(uint32_t)(index >> 32);
    }
  }

  // Standard normals (width rounded up to 4, kTile) of one stream.
  void normals(uint64_t seed, uint32_t stream, int64_t width, int64_t columns, float* out) const {
    for (int64_t block = 0; block < (width + 3) / 4; ++block)
      for (int64_t column = 0; column < columns; column += kLanes) {
        const Normals made = to_normals(philox((vu)load(low + column), (vu)load(high + column), (uint32_t)block, stream, seed));
        for (int i = 0; i < 4; ++i) store(out + (4 * block + i) * kTile + column, made.value[i]);
      }
  }
};

// Division of rows into tiles of `size`.
struct Split {
  int64_t size, tiles;

  // For work whose result for a sample does not depend on its tile.
  static Split by_threads(int64_t groups, int64_t rows, int64_t threads) {
    const int64_t fair = (groups * rows + threads - 1) / threads;
    return of_size(std::min(kTile, std::max<int64_t>(16, (fair + 15) / 16 * 16)), rows);
  }
  // For sums over samples: tiles depend on the shape alone, so that sums have one order whatever the number of threads.
  static Split by_shape(int64_t rows) {
    const int64_t wanted = std::max<int64_t>(rows > 16 ? 2 : 1, (rows + kTile - 1) / kTile);
    return of_size(std::max<int64_t>(16, ((rows + wanted - 1) / wanted + 15) / 16 * 16), rows);
  }
  static Split of_size(int64_t size, int64_t rows) { return {size, (rows + size - 1) / size}; }

  Tile tile(int64_t group, int64_t index, int64_t rows) const { return make_tile(group, index * size, std::min(size, rows - index * size)); }
};
