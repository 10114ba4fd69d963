// The denoiser on one tile of samples: forward, and backward to its input and weights. Included once per instruction set.

template <class P>
struct Network {
  int64_t latent, inputs, hidden;  // D, D + C, H
  bool residual;
  const float* first;      // (H, D + C)
  const float* last;       // (D, H)
  const float* last_bias;  // (D)
  typename P::Matrix matrix[3];
};

// One group's network; `packed` is what `pack_weights` returned. Works on the arguments of every operation that runs the denoiser.
template <class P, class Arguments>
Network<P> group_network(const Arguments& c, int64_t group, const float* packed) {
  const int64_t inputs = c.latent + c.context_width, square = c.hidden_width * c.hidden_width;
  Network<P> net{c.latent, inputs, c.hidden_width, c.residual != 0, c.first + group * c.hidden_width * inputs, c.last + group * c.latent * c.hidden_width,
                 c.last_bias + group * c.latent, {}};
  for (int64_t layer = 0; layer < 3; ++layer) {
    const int64_t index = 3 * group + layer;
    net.matrix[layer] = P::matrix(c.hidden + index * square, packed + index * P::packed_floats(c.hidden_width), c.hidden_width);
  }
  return net;
}

template <class P, class Arguments>
const float* pack_weights(const Arguments& c, bool for_backward) {
  const int64_t each = P::packed_floats(c.hidden_width), square = c.hidden_width * c.hidden_width;
  if (each == 0) return nullptr;
  float* packed = ddvi::scratch(ddvi::kPackSlot, (size_t)(3 * c.groups * each));
  ddvi::parallel_for(c.threads, 3 * c.groups, [&](int64_t i) { P::pack(c.hidden + i * square, c.hidden_width, for_backward, packed + i * each); });
  return packed;
}

template <class P>
struct Activations {
  float* input;  // (D + C, kTile): the state, then the context
  typename P::Panel first, second, third;
  typename P::Panel sum;  // third + first in a residual network, else third itself
  float* fourth;          // (H, kTile): float32 in every precision, as the last layer enters the state
};

// Allocates consecutive parts of one piece of scratch memory, each on its own cache lines.
struct Carver {
  float* next;
  float* take(int64_t floats) {
    float* here = next;
    next += (floats + 15) / 16 * 16;
    return here;
  }
};

// A backward pass needs the panels' sample-wise halves, and the third layer besides the sum for its ReLU.
template <class P>
Activations<P> carve_activations(Carver& carver, int64_t inputs, int64_t hidden, bool residual, bool for_backward) {
  auto panel = [&] { return P::panel(carver.take(P::panel_floats(hidden)), hidden, for_backward); };
  Activations<P> a;
  a.input = carver.take(inputs * kTile);
  a.first = panel();
  a.second = panel();
  a.third = panel();
  a.sum = residual && for_backward ? panel() : a.third;
  a.fourth = carver.take(hidden * kTile);
  return a;
}

template <class P>
int64_t activation_floats(int64_t inputs, int64_t hidden) {
  return (inputs + 1) * kTile + 4 * P::panel_floats(hidden) + hidden * kTile + 256;
}

// `bias(layer, row, column)` returns the time table's vector at that place.
template <class P, class Bias>
void network_hidden(const Network<P>& net, const Bias& bias, const Activations<P>& a, int64_t columns) {
  gemm<MultiplyAdd>(net.first, net.inputs, 1, a.input, kTile, net.hidden, net.inputs, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = relu(v[i] + bias(0, row + i, column));
    a.first.put(row, column, v);
  });
  P::forward(net.matrix[0], net.hidden, a.first, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = relu(v[i] + bias(1, row + i, column));
    a.second.put(row, column, v);
  });
  P::forward(net.matrix[1], net.hidden, a.second, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = relu(v[i] + bias(2, row + i, column));
    a.third.put(row, column, v);
    if (!net.residual) return;
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] += a.first.get(row + i, column);
    a.sum.put(row, column, v);
  });
  P::forward(net.matrix[2], net.hidden, a.sum, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) store(a.fourth + (row + i) * kTile + column, relu(v[i] + bias(3, row + i, column)));
  });
}

// `epilogue(row, column, values)` gets the network's output, bias included.
template <class P, class Epilogue>
void network_output(const Network<P>& net, const Activations<P>& a, int64_t columns, const Epilogue& epilogue) {
  gemm<MultiplyAdd>(net.last, net.hidden, 1, a.fourth, kTile, net.latent, net.hidden, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = v[i] + net.last_bias[row + i];
    epilogue(row, column, v);
  });
}

// Sums of weight gradients; null where not needed.
struct NetworkGradient {
  float* hidden;       // (3, H, H)
  float* first_turned;  // (D + C, H)
  float* last;         // (D, H)
  float* last_bias;    // (D)
};

template <class P>
struct BackwardScratch {
  typename P::Panel upstream[2];
  float* residual;  // (H, kTile): gradient of the sum, which also reaches the first layer
  float* narrow;    // (H, kTile): gradient before the first layer's ReLU
  float* turned;    // (kTile, H)
};

template <class P>
BackwardScratch<P> carve_backward(Carver& carver, int64_t hidden) {
  BackwardScratch<P> s;
  for (auto& panel : s.upstream) panel = P::panel(carver.take(P::panel_floats(hidden)), hidden, true);
  s.residual = carver.take(hidden * kTile);
  s.narrow = carver.take(hidden * kTile);
  s.turned = carver.take(hidden * kTile);
  return s;
}

template <class P>
int64_t backward_floats(int64_t hidden) {
  return 2 * P::panel_floats(hidden) + 3 * hidden * kTile + 256;
}

DDVI_INLINE vf gate(vf value, vf activation) { return activation <= 0.0f ? vf{} : value; }  // a NaN passes, as in torch

// Backward pass from the output's gradient `d_output` (D, kTile), zero in padding columns, to those of input and weights.
// `table(layer, panel)` gets the gradient before each layer's ReLU, `epilogue(row, column, values)` that of the input.
template <class P, class Table, class Epilogue>
void network_backward(const Network<P>& net, const Activations<P>& a, const float* d_output, int64_t samples, int64_t columns,
                      const BackwardScratch<P>& s, NetworkGradient* gradient, const Table& table, const Epilogue& epilogue) {
  const int64_t hidden = net.hidden, square = hidden * hidden;
  if (gradient) {
    for (int64_t d = 0; d < net.latent; ++d) {
      vf total = {};
      for (int64_t column = 0; column < columns; column += kLanes) total += load(d_output + d * kTile + column);
      gradient->last_bias[d] += sum(total);
    }
    transpose(a.fourth, kTile, hidden, (samples + 15) / 16 * 16, s.turned, hidden);
    Float32::accumulate_rows(d_output, net.latent, s.turned, hidden, samples, gradient->last);
  }
  gemm<MultiplyAdd>(net.last, 1, hidden, d_output, kTile, hidden, net.latent, columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = gate(v[i], load(a.fourth + (row + i) * kTile + column));
    s.upstream[0].put(row, column, v);
  });
  table(3, s.upstream[0]);
  if (gradient) P::accumulate(s.upstream[0], a.sum, hidden, samples, s.turned, gradient->hidden + 2 * square);
  P::backward(net.matrix[2], hidden, s.upstream[0], columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) {
      if (net.residual) store(s.residual + (row + i) * kTile + column, v[i]);
      v[i] = gate(v[i], a.third.get(row + i, column));
    }
    s.upstream[1].put(row, column, v);
  });
  table(2, s.upstream[1]);
  if (gradient) P::accumulate(s.upstream[1], a.second, hidden, samples, s.turned, gradient->hidden + square);
  P::backward(net.matrix[1], hidden, s.upstream[1], columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) v[i] = gate(v[i], a.second.get(row + i, column));
    s.upstream[0].put(row, column, v);
  });
  table(1, s.upstream[0]);
  if (gradient) P::accumulate(s.upstream[0], a.first, hidden, samples, s.turned, gradient->hidden);
  P::backward(net.matrix[0], hidden, s.upstream[0], columns, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) {
      const int64_t place = (row + i) * kTile + column;
      const vf total = net.residual ? v[i] + load(s.residual + place) : v[i];
      store(s.narrow + place, gate(total, a.first.get(row + i, column)));
    }
  });
  table(0, Float32::Panel{s.narrow});
  if (gradient) {
    transpose(s.narrow, kTile, hidden, (samples + 15) / 16 * 16, s.turned, hidden);
    Float32::accumulate_rows(a.input, net.inputs, s.turned, hidden, samples, gradient->first_turned);
  }
  gemm<MultiplyAdd>(net.first, 1, net.inputs, s.narrow, kTile, net.inputs, hidden, columns, epilogue);
}
