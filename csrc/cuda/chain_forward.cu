// The denoising chain for small batches: a program takes eight rows through all steps, with the hidden matrices in its registers.
//
// Launch: kThreads = 2 H threads (128 or 256); blockIdx.x is the tile of eight rows, blockIdx.y the group (1 with an index).
// Dynamic shared memory: 6 H^2 bytes for float32 (DDVI_PRECISION 2), else none. Pointers are aligned to 16 bytes.
// Macros: DDVI_PRECISION, DDVI_D, DDVI_C, DDVI_H, DDVI_NOISE, DDVI_RESIDUAL, DDVI_INDEXED, DDVI_KEEP (options.cuh).
#include "options.cuh"

#include "hidden.cuh"
#include "instructions.cuh"
#include "rng.cuh"
#include "rows.cuh"
#include "signs.cuh"
#include "states.cuh"
#include "steps.cuh"

struct Shared {
  Activations<ForwardUnits> x[2];
  WarpSums sums[2];
  alignas(16) float biases[2][4][kHidden];  // a row of the time table for this step and for the next
  SharedLayer<kShareAdded> weights_in;
  SharedLayer<kShareSummed> weights_out;
  float bias_out[4 * kOwn];
  Piece piece;
  Rows rows;
};

extern "C" __global__ void __launch_bounds__(kThreads, 1) chain_forward(
    const float *y_T,           // [G, R, D]
    const float *context,       // [G, R, C]; null if C is 0
    const float *first,         // [G, H, D + C]
    const float *hidden,        // [G, 3, H, H], float32 in every precision
    const float *last,          // [G, D, H]
    const float *last_bias,     // [G, D]
    const float *time_table,    // [G, T, 4, H]
    const float *coefficients,  // [T, 5]: A, B, s, sqrt(alpha), beta
    const float *noise,         // [T, G, R, D]; null unless DDVI_NOISE is 1
    const int64 *order,         // [R], the rows sorted by group; null without an index, and with one arrays of rows have no axis G
    const int64 *starts,        // [G + 1], where each group starts in `order`; null without an index
    const int64 *state,         // [2], seed and first draw index; null unless DDVI_NOISE is 2
    float *z,                   // [G, R, D]
    float *path,                // [G, R]; null if DDVI_NOISE is 0
    float *trajectory,          // [T + 1, G, R, D], start first; null unless DDVI_KEEP
    int *signs,                 // [T, G, R, 4, H / 32], signs.cuh, steps in the order of the trajectory; null unless DDVI_KEEP
    float *outputs,             // [T, G, R, D], the network's outputs, in the order of the trajectory; may be null
    int64 offset, int64 groups, int64 rows, int64 rows_per_sample, int64 steps) {
  DDVI_SHARED(Shared, shared);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4, last_step = (int)steps - 1;
  const Tile tile = tile_of(order, starts, groups, rows, blockIdx.x, blockIdx.y);
  if (tile.present <= 0) return;
  const int64 all_rows = rows * gridDim.y;
  const Place place = {lane};
  const bool present = tile.has(place.row());
  const int64 row = tile.row(place.row());

  Draws draws = {};
#if DDVI_NOISE == DDVI_DRAWN
  draws = {(uint64)state[0], state[1] + offset, rows_per_sample};
#endif
  if (thread < kRows) {
    shared.rows.row[thread] = row;
    shared.rows.draw[thread] = DDVI_NOISE == DDVI_DRAWN ? draws.index(row) : 0;
  }
  // A thread copies 16 bytes of each row of the time table.
  const float *next_biases = time_table + ((tile.group * steps + last_step) * 4 * kHidden + 4 * thread);
  auto fetch_biases = [&](int buffer) {
    if (thread < kHidden) copy_later(shared.biases[buffer][0] + 4 * thread, next_biases);
    next_biases -= 4 * kHidden;
  };
  fetch_biases(0);

  const int unit = ForwardUnits::unit(warp, g);
  Matrix matrices[3];
#pragma unroll
  for (int layer = 0; layer < 3; ++layer)
    load_matrix<ForwardUnits, false>(matrices[layer], hidden + tile.group * 3 * kHidden * kHidden, layer, dynamic_shared, warp, lane);
  HeldWeights held_in, held_out;
  const float *own_first = first + (tile.group * kHidden + unit) * kInputs;
#pragma unroll
  for (int d = 0; d < kLatent; ++d) {
    held_in.of[d] = {own_first[d], own_first[kInputs + d]};
    held_out.of[d] = *(const float2 *)(last + (tile.group * kLatent + d) * kHidden + unit);
    if (kShareAdded) *(float2 *)&shared.weights_in[d][unit] = held_in.of[d];
    if (kShareSummed) *(float2 *)&shared.weights_out[d][unit] = held_out.of[d];
  }
  const SharedWeights shared_in = {&shared.weights_in[0][unit]}, shared_out = {&shared.weights_out[0][unit]};
  const auto &weights_in = choose<kShareAdded>(shared_in, held_in);
  const auto &weights_out = choose<kShareSummed>(shared_out, held_out);
  float from_context[4] = {};  // what the context adds to the first layer, at every step
  for (int c = 0; c < kContext; ++c)
    for (int q = 0; q < 2; ++q) {
      const float value = tile.has(2 * t + q) ? context[tile.row(2 * t + q) * kContext + c] : 0.0f;
      for (int j = 0; j < 2; ++j) from_context[2 * j + q] += own_first[j * kInputs + kLatent + c] * value;
    }

  if (thread < 4 * kOwn) shared.bias_out[thread] = thread < kLatent ? last_bias[tile.group * kLatent + thread] : 0.0f;
  float y[kOwn], log_ratio = 0.0f;
  bool stores[kOwn];  // whether this lane of warp 0 stores its states
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const bool inside = present && place.exists(own);
    const int64 at = row * kLatent + place.coordinate(own);
    stores[own] = inside && place.writes();
    y[own] = inside ? y_T[at] : 0.0f;
    if (DDVI_KEEP && stores[own] && warp == 0) trajectory[at] = y[own];
  }
  // Where warp 0 stores the next state and warp 1 the output of a step, and every lane its half word of signs.
  const int64 own_state = row * kLatent + place.coordinate(0);
  float *next_state = trajectory + all_rows * kLatent + own_state, *next_output = outputs + own_state;
  uint16 *next_signs = (uint16 *)signs + (tile.row(2 * t + g % 2) * 4 + 2 * (lane / 16) + lane / 8 % 2) * (2 * kSignWords) + warp;
  const bool stores_signs = tile.has(2 * t + g % 2), stores_outputs = outputs != nullptr && warp == 1;
  const Addresses<ForwardUnits> even(shared.x[0], warp, lane), odd(shared.x[1], warp, lane);

  for (int begin = 0; begin < (int)steps; begin += kPiece) {
    const int end = begin + kPiece < (int)steps ? begin + kPiece : (int)steps;
    barrier();  // the rows are written, and nobody reads the piece before
    fill_coefficients(shared.piece, coefficients, end - begin, last_step - begin, -1);
    fill_noise(shared.piece, shared.rows, noise, draws.seed, end - begin, last_step - begin, -1, all_rows * kLatent);
    wait_for_copies();
    barrier();
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const int buffer = i & 1;
      if (i < last_step) fetch_biases(buffer ^ 1);
      const Coefficients k = shared.piece.coefficients[i - begin];
      float2 bias[4];
#pragma unroll
      for (int layer = 0; layer < 4; ++layer) bias[layer] = *(const float2 *)&shared.biases[buffer][layer][unit];
      uint32 bits[4];

      // The first layer in float32. Below, v has inputs of a ReLU and then its outputs.
      float first_activation[4] = {from_context[0] + bias[0].x, from_context[1] + bias[0].x, from_context[2] + bias[0].y, from_context[3] + bias[0].y};
      add_states(first_activation, weights_in, y, lane);
      auto activate = [&](float(&v)[4], int layer) {
        bits[layer] = sign_bits(v, g);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = relu(v[j]);
      };
      activate(first_activation, 0);
      store(even, first_activation);
      barrier();
      float v[4] = {bias[1].x, bias[1].x, bias[1].y, bias[1].y};
      add_product(v, matrices[0], even);
      activate(v, 1);
      store(odd, v);
      barrier();
      float w[4] = {bias[2].x, bias[2].x, bias[2].y, bias[2].y};
      add_product(w, matrices[1], odd);
      activate(w, 2);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (kResidual) w[j] += first_activation[j];
      store(even, w);
      barrier();
      float x[4] = {bias[3].x, bias[3].x, bias[3].y, bias[3].y};
      add_product(x, matrices[2], even);
      activate(x, 3);
      sum_over_units(shared.sums[buffer], weights_out, x, warp, lane);
      if (DDVI_KEEP) {
        const uint16 half_word = gather_signs(bits, lane);
        if (stores_signs) *next_signs = half_word;
        next_signs += all_rows * 4 * 2 * kSignWords;
      }
      wait_for_copies();
      barrier();

      float output[kOwn];
      total(output, shared.sums[buffer], place);
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        output[own] += shared.bias_out[place.coordinate(own)];
        float following = k.state * y[own] + k.output * output[own];
        if (kNoisy) {
          const float xi = shared.piece.noise[i - begin][place.state(own)];
          following += k.deviation * xi;
          const float away = y[own] - k.scale * following;
          const float ratio = 0.5f * (xi * xi - away * away * k.inverse_beta) + k.log_ratio;
          log_ratio += place.exists(own) ? ratio : 0.0f;
        }
        y[own] = following;
        if (DDVI_KEEP && stores[own] && warp == 0) next_state[4 * own] = following;
        if (DDVI_KEEP && stores[own] && stores_outputs) next_output[4 * own] = output[own];
      }
      next_state += all_rows * kLatent;
      next_output += all_rows * kLatent;
    }
  }

  const int64 same_row = shared.rows.row[place.row()];  // read again, so that no register keeps it through the chain
#pragma unroll
  for (int own = 0; own < kOwn; ++own)
    if (stores[own] && warp == 0) z[same_row * kLatent + place.coordinate(own)] = y[own];
  if (kNoisy) {
    log_ratio = sum_of_row(log_ratio);
    if (present && warp == 0 && lane < kRows) path[same_row] = log_ratio;
  }
}
