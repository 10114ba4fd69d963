// A tile of samples: its position, transposition of its rows to columns and back, its random numbers. Included once per instruction set.

struct Tile {
  int64_t group, begin, samples;  // `begin` counts rows sorted by group
  int64_t columns;                // samples rounded up to whole vectors
  const int64_t* order;           // the tile's part of the rows sorted by group, or null where they are sorted already

  DDVI_INLINE int64_t row(int64_t sample) const { return order ? order[sample] : begin + sample; }
};

// Columns of samples to and from rows of an array (R, width); padding columns become zero.
DDVI_INLINE void gather(const float* rows, const Tile& tile, int64_t width, float* out) {
  for (int64_t i = 0; i < tile.samples; ++i) {
    const float* from = rows + tile.row(i) * width;
    for (int64_t d = 0; d < width; ++d) out[d * kTile + i] = from[d];
  }
  for (int64_t d = 0; d < width; ++d)
    for (int64_t i = tile.samples; i < kTile; ++i) out[d * kTile + i] = 0.0f;
}

DDVI_INLINE void scatter(const float* columns, const Tile& tile, int64_t width, float* rows) {
  for (int64_t i = 0; i < tile.samples; ++i) {
    float* to = rows + tile.row(i) * width;
    for (int64_t d = 0; d < width; ++d) to[d] = columns[d * kTile + i];
  }
}

// Low and high words of the tile's draw indices.
struct TileDraws {
  alignas(64) int32_t low[kTile], high[kTile];

  TileDraws(const Draws& draws, const Tile& tile) {
    for (int64_t i = 0; i < kTile; ++i) {
      const uint64_t index = draws.index(tile.row(std::min(i, tile.samples - 1)));
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

// A group's part of the rows sorted by group, from `begin` to before `end`.
struct Segment {
  int64_t begin, end;
  int64_t rows() const { return end - begin; }
};

template <class Arguments>
Segment segment(const Arguments& c, int64_t group) {
  if (c.starts) return {c.starts[group], c.starts[group + 1]};
  const int64_t each = c.rows / c.groups;
  return {group * each, (group + 1) * each};
}

// Number of samples of a tile, for work whose result for a sample does not depend on its tile.
template <class Arguments>
int64_t tile_size_by_threads(const Arguments& c) {
  const int64_t fair = (c.rows + c.threads - 1) / c.threads;
  return std::min(kTile, std::max<int64_t>(16, (fair + 15) / 16 * 16));
}

// The same for sums over samples: tiles depend on the rows of the group alone, so that sums have one order whatever the number of threads.
inline int64_t tile_size_by_shape(int64_t rows) {
  const int64_t wanted = std::max<int64_t>(rows > 16 ? 2 : 1, (rows + kTile - 1) / kTile);
  return std::max<int64_t>(16, ((rows + wanted - 1) / wanted + 15) / 16 * 16);
}

inline int64_t tile_count(const Segment& part, int64_t size) { return (part.rows() + size - 1) / size; }

// The tile `index` of a group whose part is cut into tiles of `size`: no tile has rows of two groups.
template <class Arguments>
Tile make_tile(const Arguments& c, int64_t group, int64_t index, int64_t size) {
  const Segment part = segment(c, group);
  const int64_t begin = part.begin + index * size, samples = std::min(size, part.end - begin);
  return {group, begin, samples, (samples + kLanes - 1) / kLanes * kLanes, c.order ? c.order + begin : nullptr};
}

// Calls `body(tile)` for every tile of every group.
template <class Arguments, class Body>
void for_each_tile(const Arguments& c, const Body& body) {
  const int64_t size = tile_size_by_threads(c);
  int64_t tiles = 0;
  for (int64_t group = 0; group < c.groups; ++group) tiles += tile_count(segment(c, group), size);
  ddvi::parallel_for(c.threads, tiles, [&](int64_t item) {
    int64_t group = 0;
    for (int64_t count; item >= (count = tile_count(segment(c, group), size)); ++group) item -= count;
    body(make_tile(c, group, item, size));
  });
}
