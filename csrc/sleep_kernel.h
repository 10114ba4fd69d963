// The sleep term's regression on one tile of samples, each at a step of its own: noising, denoiser, loss, and a backward pass that
// computes all of it again. Included once per instruction set.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "network.h"
#include "tile.h"
#include "partials.h"

constexpr uint32_t kSleepNoise = 3u << 16;  // the stream NOISE of ddvi_fast/rng.py

// A bias for every sample: the row of its step.
struct RowBias {
  const float* panels;  // (4, H, kTile)
  int64_t hidden;
  DDVI_INLINE vf operator()(int64_t layer, int64_t row, int64_t column) const { return load(panels + (layer * hidden + row) * kTile + column); }
};

// Arrays of a tile, (D, kTile) unless noted.
struct Regression {
  float *clean, *noise, *error, *d_output;
  float* d_input;  // (D + C, kTile)
  float* columns;  // (5, kTile): the table's entries at each sample's step
  float* sums;     // (5, kTile): their gradients; the forward pass keeps the losses in the first
  float* bias;     // (4, H, kTile)
  int64_t step[kTile];
};

DDVI_INLINE void carve_regression(Carver& carver, const SleepArguments& c, Regression& s) {
  for (float** array : {&s.clean, &s.noise, &s.error, &s.d_output}) *array = carver.take((c.latent + 3) / 4 * 4 * kTile);
  s.d_input = carver.take((c.latent + c.context_width) * kTile);
  for (float** array : {&s.columns, &s.sums}) *array = carver.take(5 * kTile);
  s.bias = carver.take(4 * c.hidden_width * kTile);
}

DDVI_INLINE int64_t regression_floats(const SleepArguments& c) {
  return (5 * (c.latent + 3) + c.context_width + 10 + 4 * c.hidden_width) * kTile + 256;
}

DDVI_INLINE vf penalty(int64_t loss, vf e) {
  if (loss == kSquared) return e * e;
  if (loss == kAbsolute) return abs(e);
  return where(abs(e) < 1.0f, 0.5f * e * e, abs(e) - 0.5f);
}

DDVI_INLINE vf slope(int64_t loss, vf e) {
  if (loss == kSquared) return 2.0f * e;
  const vf sign = where(e > 0.0f, spread(1.0f), where(e < 0.0f, spread(-1.0f), e));
  return loss == kAbsolute ? sign : where(abs(e) < 1.0f, e, sign);
}

// Fills all inputs of the network; padding columns are at step 0 and contain only noise.
template <class P>
void noise_tile(const SleepArguments& c, const Tile& tile, const Activations<P>& a, Regression& s) {
  const int64_t width = c.latent, table_row = 4 * c.hidden_width;
  for (int64_t i = 0; i < kTile; ++i) {
    s.step[i] = i < tile.samples ? c.t[tile.row(i)] : 0;
    for (int64_t k = 0; k < 5; ++k) s.columns[k * kTile + i] = c.table[5 * s.step[i] + k];
  }
  gather(c.x0, tile, width, s.clean);
  if (c.noise) gather(c.noise, tile, width, s.noise);
  else TileDraws(c.draws, tile).normals(c.draws.seed, kSleepNoise, width, tile.columns, s.noise);
  for (int64_t d = 0; d < width; ++d)
    for (int64_t column = 0; column < tile.columns; column += kLanes) {
      const int64_t place = d * kTile + column;
      store(a.input + place, load(s.columns + column) * load(s.clean + place) + load(s.columns + kTile + column) * load(s.noise + place));
    }
  if (c.context_width) gather(c.context, tile, c.context_width, a.input + width * kTile);
  const float* rows = c.time_table + tile.group * c.steps * table_row;
  auto row_of = [&](int64_t i) DDVI_INLINE_CLOSURE { return rows + s.step[i] * table_row; };
  transpose_rows(row_of, (tile.samples + 15) / 16 * 16, table_row, s.bias, kTile);
}

// Runs the network and calls `visit(place, column, error)` for every dimension of every vector of samples.
template <class P, class Visit>
void errors(const SleepArguments& c, const Network<P>& net, const Tile& tile, const Activations<P>& a, const Regression& s, const Visit& visit) {
  network_hidden(net, RowBias{s.bias, c.hidden_width}, a, tile.columns);
  network_output(net, a, tile.columns, [&](int64_t d, int64_t column, auto& output) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(output) / sizeof(output[0]); ++i) {
      const int64_t place = (d + i) * kTile + column;
      const vf target = load(s.columns + 2 * kTile + column) * load(s.clean + place) + load(s.columns + 3 * kTile + column) * load(s.noise + place);
      visit(place, column, output[i] - target);
    }
  });
}

template <class P>
void sleep_forward_tile(const SleepArguments& c, const Network<P>& net, const Tile& tile) {
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)(activation_floats<P>(net.inputs, net.hidden) + regression_floats(c) + 256))};
  const Activations<P> a = carve_activations<P>(carver, net.inputs, net.hidden, net.residual, false);
  Regression s;
  carve_regression(carver, c, s);
  noise_tile(c, tile, a, s);
  for (int64_t i = 0; i < kTile; ++i) s.sums[i] = 0.0f;
  errors(c, net, tile, a, s, [&](int64_t, int64_t column, vf error) DDVI_INLINE_CLOSURE {
    store(s.sums + column, load(s.sums + column) + penalty(c.loss, error));
  });
  for (int64_t i = 0; i < tile.samples; ++i) c.value[tile.row(i)] = s.columns[4 * kTile + i] * s.sums[i];
}

// Backward through the loss: from the errors to the gradient of the output, and the terms of the table's gradient from target and weight.
DDVI_INLINE void loss_backward(const SleepArguments& c, const Tile& tile, const Regression& s) {
  gather(c.upstream, tile, 1, s.sums);
  for (int64_t column = 0; column < tile.columns; column += kLanes) {
    const vf above = load(s.sums + column), scale = above * load(s.columns + 4 * kTile + column);
    vf weighted_clean = {}, weighted_noise = {}, total = {};
    for (int64_t d = 0; d < c.latent; ++d) {
      const int64_t place = d * kTile + column;
      const vf error = load(s.error + place), gradient = scale * slope(c.loss, error);
      store(s.d_output + place, gradient);
      weighted_clean += gradient * load(s.clean + place);
      weighted_noise += gradient * load(s.noise + place);
      total += penalty(c.loss, error);
    }
    store(s.sums + 2 * kTile + column, -weighted_clean);
    store(s.sums + 3 * kTile + column, -weighted_noise);
    store(s.sums + 4 * kTile + column, above * total);
  }
}

// Backward through noising and target: the gradients of clean latents and noise overwrite both.
DDVI_INLINE void noising_backward(const SleepArguments& c, const Tile& tile, const Regression& s) {
  for (int64_t column = 0; column < tile.columns; column += kLanes) {
    const vf signal = load(s.columns + column), deviation = load(s.columns + kTile + column);
    const vf c0 = load(s.columns + 2 * kTile + column), c1 = load(s.columns + 3 * kTile + column);
    vf weighted_clean = {}, weighted_noise = {};
    for (int64_t d = 0; d < c.latent; ++d) {
      const int64_t place = d * kTile + column;
      const vf gradient = load(s.d_input + place), target = load(s.d_output + place);
      weighted_clean += gradient * load(s.clean + place);
      weighted_noise += gradient * load(s.noise + place);
      store(s.clean + place, signal * gradient - c0 * target);
      store(s.noise + place, deviation * gradient - c1 * target);
    }
    store(s.sums + column, weighted_clean);
    store(s.sums + kTile + column, weighted_noise);
  }
}

inline const float* unpacked(const Float32::Panel& panel, int64_t, int64_t, float*) { return panel.data; }

#if DDVI_LEVEL == 3
inline const float* unpacked(const BFloat16::Panel& panel, int64_t hidden, int64_t columns, float* out) {
  for (int64_t h = 0; h < hidden; ++h)
    for (int64_t column = 0; column < columns; column += kLanes) store(out + h * kTile + column, panel.get(h, column));
  return out;
}
#endif

template <class P>
void sleep_backward_tile(const SleepArguments& c, const Network<P>& net, const Tile& tile, const PartialLayout& layout, float* partial) {
  const int64_t hidden = net.hidden, samples = tile.samples;
  const int64_t floats = activation_floats<P>(net.inputs, hidden) + P::panel_floats(hidden) + backward_floats<P>(hidden) + regression_floats(c) +
                         2 * hidden * kTile + 256;
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)floats)};
  const Activations<P> a = carve_activations<P>(carver, net.inputs, hidden, net.residual, true);
  const BackwardScratch<P> scratch = carve_backward<P>(carver, hidden);
  Regression s;
  carve_regression(carver, c, s);
  float *plain = carver.take(hidden * kTile), *turned = carver.take(hidden * kTile);
  NetworkGradient sums{partial + layout.hidden, partial + layout.first_turned, partial + layout.last, partial + layout.last_bias};
  NetworkGradient* gradient = c.d_hidden ? &sums : nullptr;

  noise_tile(c, tile, a, s);
  errors(c, net, tile, a, s, [&](int64_t place, int64_t, vf error) DDVI_INLINE_CLOSURE { store(s.error + place, error); });
  loss_backward(c, tile, s);
  auto add_to_table = [&](int64_t layer, const auto& panel) {
    if (!gradient) return;
    transpose(unpacked(panel, hidden, tile.columns, plain), kTile, hidden, (samples + 15) / 16 * 16, turned, hidden);
    for (int64_t i = 0; i < samples; ++i) {
      float* entry = partial + layout.table + (4 * s.step[i] + layer) * hidden;
      for (int64_t h = 0; h < hidden; h += kLanes) store(entry + h, load(entry + h) + load(turned + i * hidden + h));
    }
  };
  network_backward(net, a, s.d_output, samples, tile.columns, scratch, gradient, add_to_table, [&](int64_t d, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) store(s.d_input + (d + i) * kTile + column, v[i]);
  });
  noising_backward(c, tile, s);
  if (c.d_x0) scatter(s.clean, tile, c.latent, c.d_x0);
  if (c.d_noise) scatter(s.noise, tile, c.latent, c.d_noise);
  if (c.d_context) scatter(s.d_input + c.latent * kTile, tile, c.context_width, c.d_context);
  for (int64_t i = 0; i < samples; ++i)
    for (int64_t k = 0; k < 5; ++k) partial[layout.columns + 5 * s.step[i] + k] += s.sums[k * kTile + i];
}

template <class P>
void sleep_forward_as(const SleepArguments& c) {
  const float* packed = pack_weights<P>(c, false);
  for_each_tile(c, [&](const Tile& tile) { sleep_forward_tile(c, group_network<P>(c, tile.group, packed), tile); });
}

template <class P>
void sleep_backward_as(const SleepArguments& c) {
  const float* packed = pack_weights<P>(c, true);
  sum_over_tiles(c, c.d_table, [&](const Tile& tile, const PartialLayout& layout, float* partial) {
    sleep_backward_tile(c, group_network<P>(c, tile.group, packed), tile, layout, partial);
  });
}

inline void sleep_forward(const SleepArguments& c) {
  if (c.bf16) return sleep_forward_as<BFloat16>(c);
  sleep_forward_as<Float32>(c);
}

inline void sleep_backward(const SleepArguments& c) {
  if (c.bf16) return sleep_backward_as<BFloat16>(c);
  sleep_backward_as<Float32>(c);
}
