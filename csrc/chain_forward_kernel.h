// The chain on one tile of samples: all steps while the tile stays in cache. Included once per instruction set.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "network.h"
#include "tile.h"
#include "chain_common.h"

template <class P>
void forward_tile(const ChainArguments& c, const Network<P>& net, const Tile& tile) {
  const int64_t row = tile.group * c.rows + tile.row, all_rows = c.groups * c.rows;
  const int64_t padded = (c.latent + 3) / 4 * 4;
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)(activation_floats<P>(net.inputs, net.hidden) + (padded + 1) * kTile))};
  Activations<P> a = carve_activations<P>(carver, net.inputs, net.hidden, net.residual, false);
  float* noise = carver.take(padded * kTile);
  float* path = carver.take(kTile);  // twice the path log-ratio, without its constant
  const TileDraws draws(c.draws, row);
  gather(c.start + row * c.latent, tile.samples, c.latent, a.input);
  if (c.context_width) gather(c.context + row * c.context_width, tile.samples, c.context_width, a.input + c.latent * kTile);
  if (c.trajectory) scatter(a.input, tile.samples, c.latent, c.trajectory + row * c.latent);
  for (int64_t i = 0; i < kTile; ++i) path[i] = 0.0f;
  double constant = 0.0;

  for (int64_t step = c.steps - 1; step >= 0; --step) {
    const float* k = c.coefficients + 5 * step;
    const float weight_state = k[0], weight_output = k[1], deviation = k[2], scale = k[3], inverse_beta = 1.0f / k[4];
    const bool noisy = c.noise_source != kNoNoise;
    if (noisy) {
      step_noise(c, tile, draws, step, noise);
      constant += c.latent * (2 * std::log((double)deviation) - std::log((double)k[4]));
    }
    network_hidden(net, StepBias{c.time_table + (tile.group * c.steps + step) * 4 * net.hidden, net.hidden}, a, tile.columns);
    network_output(net, a, tile.columns, [&](int64_t d, int64_t column, auto& output) DDVI_INLINE_CLOSURE {
      for (size_t i = 0; i < sizeof(output) / sizeof(output[0]); ++i) {
        float* state = a.input + (d + i) * kTile + column;
        const vf y = load(state);
        vf following = weight_state * y + weight_output * output[i];
        if (noisy) {
          const vf xi = load(noise + (d + i) * kTile + column);
          following += deviation * xi;
          const vf away = y - scale * following;
          store(path + column, load(path + column) + (xi * xi - away * away * inverse_beta));
        }
        store(state, following);
      }
    });
    if (c.trajectory) scatter(a.input, tile.samples, c.latent, c.trajectory + ((c.steps - step) * all_rows + row) * c.latent);
  }
  scatter(a.input, tile.samples, c.latent, c.z + row * c.latent);
  if (c.path)
    for (int64_t i = 0; i < tile.samples; ++i) c.path[row + i] = (float)(0.5 * (path[i] + constant));
}

template <class P>
void forward_as(const ChainArguments& c) {
  const Split split = Split::by_threads(c.groups, c.rows, c.threads);
  const float* packed = pack_weights<P>(c, false);
  ddvi::parallel_for(c.threads, c.groups * split.tiles, [&](int64_t item) {
    const int64_t group = item / split.tiles;
    forward_tile(c, group_network<P>(c, group, packed), split.tile(group, item % split.tiles, c.rows));
  });
}

inline void chain_forward(const ChainArguments& c) {
  if (c.bf16) return forward_as<BFloat16>(c);
  forward_as<Float32>(c);
}
