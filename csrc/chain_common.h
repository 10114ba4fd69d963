// What the chain's two passes share: a tile of samples, its noise, and a group's weights. Included once per instruction set.

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

// The noise of one step of a tile, made or read, (width rounded up to 4, kTile).
DDVI_INLINE void step_noise(const ChainArguments& c, const Tile& tile, const TileDraws& draws, int64_t step, float* out) {
  if (c.noise_source == kDrawnNoise) return draws.normals(c.draws.seed, (uint32_t)step, c.latent, tile.columns, out);
  gather(c.noise + ((step * c.groups + tile.group) * c.rows + tile.row) * c.latent, tile.samples, c.latent, out);
}

template <class P>
Network<P> group_network(const ChainArguments& c, int64_t group, const float* packed) {
  const int64_t inputs = c.latent + c.context_width, square = c.hidden_width * c.hidden_width;
  Network<P> net{c.latent, inputs, c.hidden_width, c.residual != 0, c.first + group * c.hidden_width * inputs, c.last + group * c.latent * c.hidden_width,
                 c.last_bias + group * c.latent, {}};
  for (int64_t layer = 0; layer < 3; ++layer) {
    const int64_t index = 3 * group + layer;
    net.matrix[layer] = P::matrix(c.hidden + index * square, packed + index * P::packed_floats(c.hidden_width), c.hidden_width);
  }
  return net;
}

template <class P>
const float* pack_weights(const ChainArguments& c) {
  const int64_t each = P::packed_floats(c.hidden_width), square = c.hidden_width * c.hidden_width;
  if (each == 0) return nullptr;
  float* packed = ddvi::scratch(ddvi::kPackSlot, (size_t)(3 * c.groups * each));
  ddvi::parallel_for(c.threads, 3 * c.groups, [&](int64_t i) { P::pack(c.hidden + i * square, c.hidden_width, packed + i * each); });
  return packed;
}

// The same bias for every sample of the tile: all stand at one step.
struct StepBias {
  const float* table;  // (4, H)
  int64_t hidden;
  DDVI_INLINE vf operator()(int64_t layer, int64_t row, int64_t) const { return spread(table[layer * hidden + row]); }
};
