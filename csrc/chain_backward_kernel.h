// Gradient of the chain on one tile of samples: activations are recomputed from the trajectory, one step at a time, and the state's
// gradient is carried from `z` up to the start. Included once per instruction set.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "network.h"
#include "tile.h"
#include "partials.h"
#include "chain_common.h"

// State of a tile during the pass up the steps; arrays are (D, kTile) unless noted.
struct Ascent {
  float *noise, *following, *output, *carried, *d_output, *direct;
  float *d_context;      // (C, kTile)
  float *path_upstream;  // (kTile)
};

DDVI_INLINE Ascent carve_ascent(Carver& carver, const ChainArguments& c) {
  const int64_t padded = (c.latent + 3) / 4 * 4 * kTile;
  Ascent s;
  for (float** array : {&s.noise, &s.following, &s.output, &s.carried, &s.d_output, &s.direct}) *array = carver.take(padded);
  s.d_context = carver.take(c.context_width * kTile);
  s.path_upstream = carver.take(kTile);
  return s;
}

DDVI_INLINE int64_t ascent_floats(const ChainArguments& c) { return (6 * (c.latent + 3) + c.context_width + 2) * kTile; }

// Backward through `y' = A y + B o + s xi` and the step's log-ratio: from the gradient of y' (in `carried`) to that of o (in `d_output`),
// the part of that of y that does not pass through the network (in `direct`), that of xi (in place), and those of the coefficients.
//
// With e = y - a y', the log-ratio is (|xi|^2 + 2 D log s - |e|^2 / beta - D log beta) / 2.
DDVI_INLINE void step_backward(const ChainArguments& c, const Tile& tile, int64_t step, const float* state, const Ascent& s, float* d_coefficients) {
  const float* k = c.coefficients + 5 * step;
  const float inverse_beta = 1.0f / k[4];
  const bool noisy = c.noise_source != kNoNoise;
  vf totals[5] = {};
  for (int64_t column = 0; column < tile.columns; column += kLanes) {
    const vf path = load(s.path_upstream + column);
    for (int64_t d = 0; d < c.latent; ++d) {
      const int64_t place = d * kTile + column;
      const vf y = load(state + place), following = load(s.following + place);
      const vf away = (y - k[3] * following) * inverse_beta;
      const vf upstream = load(s.carried + place) + path * k[3] * away;
      store(s.d_output + place, k[1] * upstream);
      store(s.direct + place, k[0] * upstream - path * away);
      if (d_coefficients) {
        totals[0] += upstream * y;
        totals[1] += upstream * load(s.output + place);
        totals[3] += path * away * following;
        totals[4] += 0.5f * path * (away * away - inverse_beta);
      }
      if (!noisy) continue;
      const vf xi = load(s.noise + place);
      if (d_coefficients) totals[2] += upstream * xi + path / k[2];
      store(s.noise + place, path * xi + k[2] * upstream);
    }
  }
  if (d_coefficients)
    for (int i = 0; i < 5; ++i) d_coefficients[i] += sum(totals[i]);
}

// Each step has the context `context_stride` floats after that of the step before it; the gradient of the context is the sum over the steps.
template <class P>
void backward_tile(const ChainArguments& c, int64_t context_stride, const Network<P>& net, const Tile& tile, const PartialLayout& layout, float* partial) {
  const int64_t width = c.latent, plane = c.rows * width;
  const int64_t floats = activation_floats<P>(net.inputs, net.hidden) + P::panel_floats(net.hidden) + backward_floats<P>(net.hidden) + ascent_floats(c) + 256;
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)floats)};
  const Activations<P> a = carve_activations<P>(carver, net.inputs, net.hidden, net.residual, true);
  const BackwardScratch<P> scratch = carve_backward<P>(carver, net.hidden);
  const Ascent s = carve_ascent(carver, c);
  const TileDraws draws(c.draws, tile);
  NetworkGradient sums{partial + layout.hidden, partial + layout.first_turned, partial + layout.last, partial + layout.last_bias};
  NetworkGradient* gradient = c.d_hidden ? &sums : nullptr;

  // `output` is a buffer for an upstream gradient before a step needs it.
  auto add_upstream = [&](const float* rows) {
    gather(rows, tile, width, s.output);
    for (int64_t i = 0; i < width * kTile; ++i) s.carried[i] += s.output[i];
  };
  for (int64_t i = 0; i < width * kTile; ++i) s.carried[i] = 0.0f;
  for (int64_t i = 0; i < c.context_width * kTile; ++i) s.d_context[i] = 0.0f;
  if (c.z_upstream) add_upstream(c.z_upstream);
  for (int64_t i = 0; i < kTile; ++i) s.path_upstream[i] = c.path_upstream && i < tile.samples ? c.path_upstream[tile.row(i)] : 0.0f;
  gather(c.trajectory + c.steps * plane, tile, width, a.input);

  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t entry = c.steps - step;  // index of the state after this step
    if (c.trajectory_upstream) add_upstream(c.trajectory_upstream + entry * plane);
    std::memcpy(s.following, a.input, (size_t)(width * kTile) * sizeof(float));
    gather(c.trajectory + (entry - 1) * plane, tile, width, a.input);
    if (c.context_width && (step == 0 || context_stride != 0)) gather(c.context + step * context_stride, tile, c.context_width, a.input + width * kTile);
    if (c.noise_source != kNoNoise) step_noise(c, tile, draws, step, s.noise);
    network_hidden(net, StepBias{c.time_table + (tile.group * c.steps + step) * 4 * net.hidden, net.hidden}, a, tile.columns);
    if (c.d_coefficients)
      network_output(net, a, tile.columns, [&](int64_t d, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
        for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) store(s.output + (d + i) * kTile + column, v[i]);
      });
    step_backward(c, tile, step, a.input, s, c.d_coefficients ? partial + layout.columns + 5 * step : nullptr);
    if (c.d_noise) scatter(s.noise, tile, width, c.d_noise + step * plane);
    float* table = partial + layout.table + step * 4 * net.hidden;
    auto add_to_table = [&](int64_t layer, const auto& panel) {
      if (!gradient) return;
      for (int64_t h = 0; h < net.hidden; ++h) {
        vf total = {};
        for (int64_t column = 0; column < tile.columns; column += kLanes) total += panel.get(h, column);
        table[layer * net.hidden + h] += sum(total);
      }
    };
    network_backward(net, a, s.d_output, tile.samples, tile.columns, scratch, gradient, add_to_table, [&](int64_t d, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
      for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) {
        const int64_t at = (d + i) * kTile + column;
        if (d + (int64_t)i < width) {
          store(s.carried + at, load(s.direct + at) + v[i]);
        } else {
          float* place = s.d_context + at - width * kTile;
          store(place, load(place) + v[i]);
        }
      }
    });
  }
  if (c.trajectory_upstream) add_upstream(c.trajectory_upstream);
  if (c.d_start) scatter(s.carried, tile, width, c.d_start);
  if (c.d_context) scatter(s.d_context, tile, c.context_width, c.d_context);
}

template <class P>
void backward_as(const ChainArguments& c, int64_t context_stride) {
  const float* packed = pack_weights<P>(c, true);
  sum_over_tiles(c, c.d_coefficients, [&](const Tile& tile, const PartialLayout& layout, float* partial) {
    backward_tile(c, context_stride, group_network<P>(c, tile.group, packed), tile, layout, partial);
  });
}

inline void chain_backward(const ChainArguments& c, int64_t context_stride) {
  if (c.bf16) return backward_as<BFloat16>(c, context_stride);
  backward_as<Float32>(c, context_stride);
}
