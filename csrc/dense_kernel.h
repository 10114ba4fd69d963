// A dense layer: dropout(activation(x weight^T + bias)), and its gradients. Included once per instruction set.
//
// Threads divide the output's features, then the input's, and each piece of work has a fixed order of sums: the result does not depend on
// the number of threads. Rows are processed in runs of at most kRun, which bounds the scratch memory.

#include "simd.h"
#include "rng.h"
#include "gemm.h"
#include "layers.h"
#include "tile.h"
#include "dense_operands.h"

constexpr int64_t kRun = 1024;

// Rows [first, first + samples) of a call, in panels.
struct Run {
  int64_t first, samples;

  int64_t panels() const { return (samples + kTile - 1) / kTile; }
  int64_t start(int64_t panel) const { return first + panel * kTile; }
  int64_t count(int64_t panel) const { return std::min(kTile, samples - panel * kTile); }
  RowBlock rows(const float* data, int64_t width, int64_t panel) const { return {data + start(panel) * width, width, count(panel)}; }
};

template <class Body>
void each_run(const DenseArguments& d, const Body& body) {
  for (int64_t first = 0; first < d.rows; first += kRun) body(Run{first, std::min(kRun, d.rows - first)});
}

// Copies the part (features, kTile) of a piece of work into columns [first, first + count) of an array (rows, width).
inline void write_rows(const float* part, float* turned, int64_t samples, int64_t width, int64_t first, int64_t count, float* out) {
  transpose(part, kTile, kChunk, kTile, turned, kChunk);
  for (int64_t r = 0; r < samples; ++r) std::memcpy(out + r * width + first, turned + r * kChunk, count * sizeof(float));
}

// Bias, activation and dropout of blocks of output features, from `feature` on.
struct Activate {
  const DenseArguments& d;
  const TileDraws* draws;
  int64_t feature;
  float* part;  // (kChunk, kTile)

  template <int ROWS>
  DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
    const float slope = (float)d.slope;
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const vf value = values[i] + d.bias[feature + row + i];
      store(part + (row + i) * kTile + column, where(value > 0.0f, value, slope * value));
    }
    if (draws != nullptr) drop(row, column, ROWS);
  }

  // Four features use one block of random words.
  void drop(int64_t row, int64_t column, int64_t count) const {
    const float rate = (float)d.rate, scale = (float)(1 / (1 - d.rate));
    for (int64_t i = 0; i < count;) {
      const int64_t place = feature + row + i;
      const Quad quad = philox((vu)load(draws->low + column), (vu)load(draws->high + column), (uint32_t)(place / 4), (uint32_t)d.stream, d.draws.seed);
      for (int64_t word = place % 4; word < 4 && i < count; ++word, ++i) {
        float* value = part + (row + i) * kTile + column;
        store(value, where(to_uniform(quad.word[word]) >= rate, load(value) * scale, vf{}));
      }
    }
  }
};

struct Keep {
  float* part;  // (kChunk, kTile)

  template <int ROWS>
  DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) store(part + (row + i) * kTile + column, values[i]);
  }
};

// Calls `epilogue` with ROWS stored rows of a product.
template <int ROWS, class Epilogue>
inline void apply(const Epilogue& epilogue, int64_t row, int64_t samples, const float* part) {
  for (int64_t column = 0; column < samples; column += kLanes) {
    vf values[ROWS];
    for (int i = 0; i < ROWS; ++i) values[i] = load(part + (row + i) * kTile + column);
    epilogue(row, column, values);
  }
}

// Weights times a panel, `count` rows, into `part` (count, kTile).
template <class Op, class Epilogue>
void product(const Operand& weight, const float* panel, int64_t count, int64_t samples, float* part, const Epilogue& epilogue) {
  auto multiply = [&](const auto& each) {
    gemm<Op, kTallRows, kTallVectors>(weight.data, weight.row_stride, weight.column_stride, panel, kTile, count, weight.depth, samples, each);
  };
  if constexpr (DDVI_LEVEL >= 2) return multiply(epilogue);
  // With 16 registers, constants of the epilogue would take some that the sums need: it follows the product.
  multiply(Keep{part});
  int64_t row = 0;
  for (; row + 4 <= count; row += 4) apply<4>(epilogue, row, samples, part);
  for (; row < count; ++row) apply<1>(epilogue, row, samples, part);
}

template <class Layout>
void forward(const DenseArguments& d) {
  using P = typename Layout::Precision;
  const int64_t panel_floats = P::panel_floats(round_up(d.inputs, 32)), chunks = (d.outputs + kChunk - 1) / kChunk;
  each_run(d, [&](const Run& run) {
    float* panels = ddvi::scratch(ddvi::kPackSlot, run.panels() * panel_floats);
    ddvi::parallel_for(d.threads, run.panels(), [&](int64_t p) {
      Layout::turn(run.rows(d.x, d.inputs, p), ddvi::scratch(ddvi::kTileSlot, kTile * 16), panels + p * panel_floats);
    });
    ddvi::parallel_for(d.threads, chunks, [&](int64_t chunk) {
      const int64_t first = chunk * kChunk, count = std::min(kChunk, d.outputs - first);
      float* part = ddvi::scratch(ddvi::kTileSlot, 2 * kChunk * kTile + Layout::chunk_floats(d.inputs));
      float* turned = part + kChunk * kTile;
      const Operand weight = Layout::weight_rows(d.weight, d.inputs, first, count, turned + kChunk * kTile);
      for (int64_t p = 0; p < run.panels(); ++p) {
        const TileDraws draws(d.draws, Tile{0, run.start(p), run.count(p), kTile, nullptr});
        const Activate epilogue{d, d.rate > 0 ? &draws : nullptr, first, part};
        product<typename Layout::Op>(weight, panels + p * panel_floats, count, run.count(p), part, epilogue);
        write_rows(part, turned, run.count(p), d.outputs, first, count, d.out + run.start(p) * d.outputs);
      }
    });
  });
}

// Gradient of the product, feature-major: upstream times the slope, which follows from the output; sums over samples go into `sums`.
// A dropped value is exactly zero.
template <class Panel>
void turn_gradient(const DenseArguments& d, const Run& run, int64_t p, int64_t first, float* scratch, const Panel& panel, float* sums) {
  const RowBlock upstream = run.rows(d.upstream, d.outputs, p), out = run.rows(d.out, d.outputs, p);
  const float scale = (float)(1 / (1 - d.rate)), below = (float)d.slope * scale, at_zero = d.rate > 0 ? 0.0f : (float)d.slope;
  float* turned = scratch + kTile * kChunk;
  for (int64_t r = 0; r < kTile; ++r)
    for (int64_t c = 0; c < kChunk; c += kLanes) {
      const vf value = out.get(r, first + c);
      const vf slope = where(value > 0.0f, spread(scale), where(value < 0.0f, spread(below), where(value == 0.0f, spread(at_zero), value)));
      store(scratch + r * kChunk + c, upstream.get(r, first + c) * slope);
    }
  transpose(scratch, kChunk, kTile, kChunk, turned, kTile);
  for (int64_t feature = 0; feature < kChunk; feature += 2)
    for (int64_t column = 0; column < kTile; column += kLanes) {
      const vf values[2] = {load(turned + feature * kTile + column), load(turned + (feature + 1) * kTile + column)};
      panel.put(first + feature, column, values);
      sums[feature] += sum(values[0]);
      sums[feature + 1] += sum(values[1]);
    }
}

// Stores into the first `count` columns at `target`, or adds to them.
struct AddTo {
  float* target;
  int64_t stride, count;
  bool on_top;

  template <int ROWS>
  DDVI_INLINE void operator()(int64_t row, int64_t column, const vf (&values)[ROWS]) const {
    const int64_t left = count - column;
    if (left <= 0) return;
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      float* place = target + (row + i) * stride + column;
      store_some(place, on_top ? values[i] + load_some(place, left) : values[i], left);
    }
  }
};

// Rows [first, first + count) of d_weight += transposed gradient times x. `columns` holds x of every panel in strips (kTile, kChunk).
template <class Layout, class Panels>
void weight_gradient(const DenseArguments& d, const Run& run, int64_t first, const Panels& panel, const float* columns) {
  const int64_t strips = (d.inputs + kChunk - 1) / kChunk, count = std::min(kChunk, d.outputs - first);
  for (int64_t strip = 0; strip < strips; ++strip)
    for (int64_t p = 0; p < run.panels(); ++p) {
      const Operand gradient = Layout::over_samples(panel(p), first);
      const AddTo add{d.d_weight + first * d.inputs + strip * kChunk, d.inputs, d.inputs - strip * kChunk, run.first > 0 || p > 0};
      gemm<typename Layout::Op, kWideRows, kWideVectors>(gradient.data, gradient.row_stride, gradient.column_stride,
                                                         columns + (p * strips + strip) * kTile * kChunk, kChunk, count, gradient.depth, kChunk, add);
    }
}

// Columns [first, first + kChunk) of d_x = gradient times weight.
template <class Layout, class Panels>
void input_gradient(const DenseArguments& d, const Run& run, int64_t first, const Panels& panel) {
  const int64_t count = std::min(kChunk, d.inputs - first);
  float* part = ddvi::scratch(ddvi::kTileSlot, 2 * kChunk * kTile + Layout::chunk_floats(d.outputs));
  float* turned = part + kChunk * kTile;
  const Operand weight = Layout::weight_columns(d.weight, d.inputs, d.outputs, first, turned + kChunk * kTile);
  for (int64_t p = 0; p < run.panels(); ++p) {
    gemm<typename Layout::Op, kTallRows, kTallVectors>(weight.data, weight.row_stride, weight.column_stride, Layout::over_features(panel(p)), kTile, count,
                                                       weight.depth, run.count(p), Keep{part});
    write_rows(part, turned, run.count(p), d.inputs, first, count, d.d_x + run.start(p) * d.inputs);
  }
}

template <class Layout>
void backward(const DenseArguments& d) {
  using P = typename Layout::Precision;
  const int64_t out_chunks = (d.outputs + kChunk - 1) / kChunk, in_chunks = (d.inputs + kChunk - 1) / kChunk;
  const int64_t padded = out_chunks * kChunk, panel_floats = P::panel_floats(padded), strip_floats = kTile * kChunk;
  each_run(d, [&](const Run& run) {
    float* memory = ddvi::scratch(ddvi::kPackSlot, run.panels() * (panel_floats + in_chunks * strip_floats));
    float* columns = memory + run.panels() * panel_floats;
    auto panel = [&](int64_t p) { return P::panel(memory + p * panel_floats, padded, true); };
    if (d.d_weight != nullptr)
      ddvi::parallel_for(d.threads, run.panels() * in_chunks, [&](int64_t item) {
        Layout::columns_of(run.rows(d.x, d.inputs, item / in_chunks), item % in_chunks * kChunk, columns + item * strip_floats);
      });
    ddvi::parallel_for(d.threads, out_chunks, [&](int64_t chunk) {
      float sums[kChunk] = {};
      float* scratch = ddvi::scratch(ddvi::kTileSlot, 2 * kTile * kChunk);
      for (int64_t p = 0; p < run.panels(); ++p) turn_gradient(d, run, p, chunk * kChunk, scratch, panel(p), sums);
      if (d.d_weight != nullptr) weight_gradient<Layout>(d, run, chunk * kChunk, panel, columns);
      if (d.d_bias == nullptr) return;
      for (int64_t i = 0; i < std::min(kChunk, d.outputs - chunk * kChunk); ++i)
        d.d_bias[chunk * kChunk + i] = sums[i] + (run.first > 0 ? d.d_bias[chunk * kChunk + i] : 0.0f);
    });
    if (d.d_x != nullptr) ddvi::parallel_for(d.threads, in_chunks, [&](int64_t chunk) { input_gradient<Layout>(d, run, chunk * kChunk, panel); });
  });
}

inline void dense_forward(const DenseArguments& d) {
  if (d.bf16) return forward<DenseBFloat16>(d);
  forward<DenseFloat32>(d);
}

inline void dense_backward(const DenseArguments& d) {
  if (d.bf16) return backward<DenseBFloat16>(d);
  backward<DenseFloat32>(d);
}
