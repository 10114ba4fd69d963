// Gradient of a log-likelihood for the latents of a multilayer perceptron: all layers forward and backward on one tile of samples while it
// stays in cache. Included once per instruction set.
//
// The result for a row depends neither on the other rows nor on the number of threads.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "network.h"
#include "tile.h"

DDVI_INLINE vf sigmoid(vf x) {
  const vf small = exp(-abs(x)), inverse = 1.0f / (1.0f + small);
  return where(x >= 0.0f, inverse, small * inverse);
}

// Value and derivative of the hidden layers' activations at `a`.
struct Slope {
  float below;
  DDVI_INLINE void operator()(vf a, vf& value, vf& derivative) const {
    value = where(a > 0.0f, a, below * a);
    derivative = where(a > 0.0f, spread(1.0f), spread(below));
  }
};

struct Tanh {
  DDVI_INLINE void operator()(vf a, vf& value, vf& derivative) const {
    const vf small = exp(-2.0f * abs(a)), inverse = 1.0f / (1.0f + small);
    value = (1.0f - small) * inverse;
    value = where(a >= 0.0f, value, -value);
    derivative = 4.0f * small * inverse * inverse;
  }
};

struct Silu {
  DDVI_INLINE void operator()(vf a, vf& value, vf& derivative) const {
    const vf gate = sigmoid(a);
    value = a * gate;
    derivative = gate * (1.0f + a * (1.0f - gate));
  }
};

// Gradient of the log-likelihood of `x` for the decoder's output.
struct ToOutput {
  const DecoderArguments& d;

  DDVI_INLINE vf operator()(vf output, vf x, float scale) const {
    if (d.likelihood == kBernoulli) return x - sigmoid(output);
    if (d.likelihood == kBinomial) return where(x == x, x - (float)d.total * sigmoid(output), vf{});  // a missing count has no gradient
    const float precision = 1.0f / (scale * scale);
    if (!d.ranged) return (x - output) * precision;
    const vf share = sigmoid(output);
    return (x - ((float)d.low + (float)d.span * share)) * precision * ((float)d.span * share * (1.0f - share));
  }
};

// Stores blocks of a product plus a bias, or times the activations' derivatives.
struct AddBias {
  const float* bias;
  float* out;  // (width, kTile)

  template <int ROWS>
  DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) store(out + (row + i) * kTile + column, values[i] + bias[row + i]);
  }
};

struct Scale {
  const float* factor;  // (width, kTile), or null
  float* out;

  template <int ROWS>
  DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const int64_t place = (row + i) * kTile + column;
      store(out + place, factor ? values[i] * load(factor + place) : values[i]);
    }
  }
};

// Rows of data of a tile's samples as columns (width, kTile); scratch is (kTile, 16).
inline void data_columns(const DecoderArguments& d, const Tile& tile, int64_t width, float* scratch, float* out) {
  for (int64_t first = 0; first < width; first += 16) {
    for (int64_t i = 0; i < kTile; ++i) {
      const float* row = d.x + (tile.begin + std::min(i, tile.samples - 1)) % d.period * width;
      for (int64_t c = 0; c < 16; c += kLanes) store(scratch + i * 16 + c, first + c < width ? load_some(row + first + c, width - first - c) : vf{});
    }
    transpose(scratch, 16, kTile, 16, out + first * kTile, kTile);
  }
}

template <class Function>
void activate(const Function& function, int64_t width, const Tile& tile, float* values, float* derivatives) {
  for (int64_t h = 0; h < width; ++h)
    for (int64_t column = 0; column < tile.columns; column += kLanes) {
      vf value, derivative;
      function(load(values + h * kTile + column), value, derivative);
      store(values + h * kTile + column, value);
      store(derivatives + h * kTile + column, derivative);
    }
}

// Products of the tall shape: the activations of a tile are larger than the first cache.
template <class Epilogue>
inline void tall_product(const float* a, const float* b, int64_t rows, int64_t depth, const Tile& tile, const Epilogue& epilogue) {
  gemm<MultiplyAdd, kTallRows, kTallVectors>(a, depth, 1, b, kTile, rows, depth, tile.columns, epilogue);
}

template <class Function>
void gradient_of_tile(const DecoderArguments& d, const Function& function, const Tile& tile) {
  const int64_t* widths = d.widths;
  int64_t widest = 0, hidden = 0;
  for (int64_t layer = 0; layer <= d.layers; ++layer) widest = std::max(widest, (widths[layer] + 15) / 16 * 16);
  for (int64_t layer = 1; layer < d.layers; ++layer) hidden += widths[layer];
  Carver carver{ddvi::scratch(ddvi::kTileSlot, (size_t)((3 * widest + hidden + 16) * kTile))};
  float *in = carver.take(widest * kTile), *out = carver.take(widest * kTile), *data = carver.take(widest * kTile);
  float* derivatives = carver.take(hidden * kTile);
  data_columns(d, tile, widths[d.layers], carver.take(16 * kTile), data);
  gather(d.z, tile, widths[0], in);
  for (int64_t layer = 0; layer < d.layers; ++layer) {
    tall_product(d.weights[layer], in, widths[layer + 1], widths[layer], tile, AddBias{d.biases[layer], out});
    std::swap(in, out);
    if (layer + 1 == d.layers) break;
    activate(function, widths[layer + 1], tile, in, derivatives);
    derivatives += widths[layer + 1] * kTile;
  }
  const ToOutput to_output{d};
  for (int64_t p = 0; p < widths[d.layers]; ++p)
    for (int64_t column = 0; column < tile.columns; column += kLanes) {
      const float scale = d.scale ? d.scale[d.scale_period * p] : 1.0f;
      store(in + p * kTile + column, to_output(load(in + p * kTile + column), load(data + p * kTile + column), scale));
    }
  for (int64_t layer = d.layers - 1; layer >= 0; --layer) {
    if (layer > 0) derivatives -= widths[layer] * kTile;
    tall_product(d.turned[layer], in, widths[layer], widths[layer + 1], tile, Scale{layer > 0 ? derivatives : nullptr, out});
    std::swap(in, out);
  }
  scatter(in, tile, widths[0], d.d_z);
}

template <class Function>
void gradient(const DecoderArguments& d, const Function& function) {
  const int64_t size = tile_size_by_threads(d);
  ddvi::parallel_for(d.threads, (d.rows + size - 1) / size, [&](int64_t item) {
    const int64_t begin = item * size, samples = std::min(size, d.rows - begin);
    gradient_of_tile(d, function, Tile{0, begin, samples, (samples + kLanes - 1) / kLanes * kLanes, nullptr});
  });
}

inline void decoder_gradient(const DecoderArguments& d) {
  switch (d.activation) {
    case kTanh: return gradient(d, Tanh{});
    case kSilu: return gradient(d, Silu{});
    default: return gradient(d, Slope{(float)d.slope});
  }
}
