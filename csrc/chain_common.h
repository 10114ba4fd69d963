// Helpers of both passes of the chain. Included once per instruction set.

// Noise of one step of a tile, drawn or read, (width rounded up to 4, kTile).
DDVI_INLINE void step_noise(const ChainArguments& c, const Tile& tile, const TileDraws& draws, int64_t step, float* out) {
  if (c.noise_source == kDrawnNoise) return draws.normals(c.draws.seed, (uint32_t)step, c.latent, tile.columns, out);
  gather(c.noise + step * c.rows * c.latent, tile, c.latent, out);
}

// One bias for every sample of the tile: all samples are at one step.
struct StepBias {
  const float* table;  // (4, H)
  int64_t hidden;
  DDVI_INLINE vf operator()(int64_t layer, int64_t row, int64_t) const { return spread(table[layer * hidden + row]); }
};
