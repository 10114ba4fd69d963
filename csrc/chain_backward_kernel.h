// The chain's gradient on one tile of samples: activations recomputed a step at a time from the trajectory, the state's gradient
// carried from `z` up to the start. Included once per instruction set.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "network.h"
#include "chain_common.h"

// Where the sums of one chunk of samples stand in its part of the partial sums.
struct PartialLayout {
  int64_t hidden, first_turned, last, last_bias, table, coefficients, size;

  explicit PartialLayout(const ChainArguments& c) {
    int64_t next = 0;
    auto take = [&](int64_t floats) { return (next += (floats + 15) / 16 * 16) - (floats + 15) / 16 * 16; };
    hidden = take(3 * c.hidden_width * c.hidden_width);
    first_turned = take((c.latent + c.context_width) * c.hidden_width);
    last = take(c.latent * c.hidden_width);
    last_bias = take(c.latent);
    table = take(c.steps * 4 * c.hidden_width);
    coefficients = take(c.steps * 5);
    size = next;
  }
};

// The state of a tile on its way up the steps; arrays are (D, kTile) unless said.
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

// Through `y' = A y + B o + s xi` and the step's log-ratio: from the gradient of y' (in `carried`) to that of o (in `d_output`), the
// part of that of y which does not pass through the network (in `direct`), that of xi (in place), and those of the coefficients.
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

template <class P>
void backward_tile(const ChainArguments& c, const Network<P>& net, const Tile& tile, const PartialLayout& layout, float* partial) {
  const int64_t row = tile.group * c.rows + tile.row, all_rows = c.groups * c.rows, width = c.latent;
  const int64_t floats = activation_floats<P>(net.inputs, net.hidden) + P::panel_floats(net.hidden) + backward_floats<P>(net.hidden) + ascent_floats(c) + 256;
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)floats)};
  const Activations<P> a = carve_activations<P>(carver, net.inputs, net.hidden, net.residual, true);
  const BackwardScratch<P> scratch = carve_backward<P>(carver, net.hidden);
  const Ascent s = carve_ascent(carver, c);
  const TileDraws draws(c.draws, row);
  NetworkGradient sums{partial + layout.hidden, partial + layout.first_turned, partial + layout.last, partial + layout.last_bias};
  NetworkGradient* gradient = c.d_hidden ? &sums : nullptr;

  // `output` serves as a buffer for an upstream gradient before a step needs it.
  auto add_upstream = [&](const float* rows) {
    gather(rows + row * width, tile.samples, width, s.output);
    for (int64_t i = 0; i < width * kTile; ++i) s.carried[i] += s.output[i];
  };
  for (int64_t i = 0; i < width * kTile; ++i) s.carried[i] = 0.0f;
  for (int64_t i = 0; i < c.context_width * kTile; ++i) s.d_context[i] = 0.0f;
  if (c.z_upstream) add_upstream(c.z_upstream);
  for (int64_t i = 0; i < kTile; ++i) s.path_upstream[i] = c.path_upstream && i < tile.samples ? c.path_upstream[row + i] : 0.0f;
  if (c.context_width) gather(c.context + row * c.context_width, tile.samples, c.context_width, a.input + width * kTile);
  gather(c.trajectory + (c.steps * all_rows + row) * width, tile.samples, width, a.input);

  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t entry = c.steps - step;  // of the state that this step led to
    if (c.trajectory_upstream) add_upstream(c.trajectory_upstream + entry * all_rows * width);
    std::memcpy(s.following, a.input, (size_t)(width * kTile) * sizeof(float));
    gather(c.trajectory + ((entry - 1) * all_rows + row) * width, tile.samples, width, a.input);
    if (c.noise_source != kNoNoise) step_noise(c, tile, draws, step, s.noise);
    network_hidden(net, StepBias{c.time_table + (tile.group * c.steps + step) * 4 * net.hidden, net.hidden}, a, tile.columns);
    if (c.d_coefficients)
      network_output(net, a, tile.columns, [&](int64_t d, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
        for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) store(s.output + (d + i) * kTile + column, v[i]);
      });
    step_backward(c, tile, step, a.input, s, c.d_coefficients ? partial + layout.coefficients + 5 * step : nullptr);
    if (c.d_noise) scatter(s.noise, tile.samples, width, c.d_noise + (step * all_rows + row) * width);
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
  if (c.d_start) scatter(s.carried, tile.samples, width, c.d_start + row * width);
  if (c.d_context) scatter(s.d_context, tile.samples, c.context_width, c.d_context + row * c.context_width);
}

// Adds the chunks' partial sums in their order. Absent outputs are skipped.
inline void reduce_partials(const ChainArguments& c, const PartialLayout& layout, const float* partial, int64_t chunks) {
  const int64_t inputs = c.latent + c.context_width, hidden = c.hidden_width, square = hidden * hidden;
  auto reduce = [&](float* out, int64_t group, int64_t offset, int64_t floats) {
    if (out == nullptr) return;
    const float* first = partial + group * chunks * layout.size + offset;
    for (int64_t i = 0; i < floats; i += kLanes) {
      vf total = load_some(first + i, floats - i);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) total += load_some(first + chunk * layout.size + i, floats - i);
      store_some(out + i, total, floats - i);
    }
  };
  ddvi::parallel_for(c.threads, 5 * c.groups, [&](int64_t item) {
    const int64_t group = item / 5, part = item % 5;
    if (c.d_hidden == nullptr) return;
    if (part < 3) reduce(c.d_hidden + (3 * group + part) * square, group, layout.hidden + part * square, square);
    if (part == 3) reduce(c.d_time_table + group * c.steps * 4 * hidden, group, layout.table, c.steps * 4 * hidden);
    if (part != 4) return;
    reduce(c.d_last + group * c.latent * hidden, group, layout.last, c.latent * hidden);
    reduce(c.d_last_bias + group * c.latent, group, layout.last_bias, c.latent);
    for (int64_t h = 0; h < hidden; ++h)
      for (int64_t i = 0; i < inputs; ++i) {
        float total = 0.0f;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(group * chunks + chunk) * layout.size + layout.first_turned + i * hidden + h];
        c.d_first[(group * hidden + h) * inputs + i] = total;
      }
  });
  if (c.d_coefficients == nullptr) return;
  for (int64_t i = 0; i < 5 * c.steps; ++i) {
    double total = 0.0;
    for (int64_t part = 0; part < c.groups * chunks; ++part) total += partial[part * layout.size + layout.coefficients + i];
    c.d_coefficients[i] = (float)total;
  }
}

template <class P>
void backward_as(const ChainArguments& c) {
  // Tiles and chunks follow from the shape alone: sums have one order whatever the number of threads.
  const int64_t wanted = std::max<int64_t>(c.rows > 16 ? 2 : 1, (c.rows + kTile - 1) / kTile);
  const int64_t size = std::max<int64_t>(16, ((c.rows + wanted - 1) / wanted + 15) / 16 * 16), tiles = (c.rows + size - 1) / size;
  const int64_t chunks = std::max<int64_t>(1, std::min(tiles, 16 / c.groups));
  const PartialLayout layout(c);
  const float* packed = pack_weights<P>(c);
  float* partials = ddvi::scratch(ddvi::kPartialSlot, (size_t)(c.groups * chunks * layout.size));
  ddvi::parallel_for(c.threads, c.groups * chunks, [&](int64_t item) {
    const int64_t group = item / chunks, chunk = item % chunks;
    float* partial = partials + item * layout.size;
    std::memset(partial, 0, (size_t)layout.size * sizeof(float));
    const Network<P> net = group_network<P>(c, group, packed);
    for (int64_t tile = tiles * chunk / chunks; tile < tiles * (chunk + 1) / chunks; ++tile)
      backward_tile(c, net, make_tile(group, tile * size, std::min(size, c.rows - tile * size)), layout, partial);
  });
  reduce_partials(c, layout, partials, chunks);
}

inline void chain_backward(const ChainArguments& c) {
#if DDVI_LEVEL == 3
  if (c.bf16) return backward_as<BFloat16>(c);
#endif
  backward_as<Float32>(c);
}
