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
  const int64_t padded = (c.latent + 3) / 4 * 4;
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)(activation_floats<P>(net.inputs, net.hidden) + (padded + 1) * kTile))};
  Activations<P> a = carve_activations<P>(carver, net.inputs, net.hidden, net.residual, false);
  float* noise = carver.take(padded * kTile);
  float* path = carver.take(kTile);  // twice the path log-ratio, without its constant
  const TileDraws draws(c.draws, tile);
  gather(c.start, tile, c.latent, a.input);
  if (c.context_width) gather(c.context, tile, c.context_width, a.input + c.latent * kTile);
  if (c.trajectory) scatter(a.input, tile, c.latent, c.trajectory);
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
    if (c.trajectory) scatter(a.input, tile, c.latent, c.trajectory + (c.steps - step) * c.rows * c.latent);
  }
  scatter(a.input, tile, c.latent, c.z);
  if (c.path)
    for (int64_t i = 0; i < tile.samples; ++i) c.path[tile.row(i)] = (float)(0.5 * (path[i] + constant));
}

template <class P>
void forward_as(const ChainArguments& c) {
  const float* packed = pack_weights<P>(c, false);
  for_each_tile(c, [&](const Tile& tile) { forward_tile(c, group_network<P>(c, tile.group, packed), tile); });
}

inline void chain_forward(const ChainArguments& c) {
  if (c.bf16) return forward_as<BFloat16>(c);
  forward_as<Float32>(c);
}
