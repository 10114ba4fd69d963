// Gradient of the denoising chain for small batches, from the trajectory and the ReLUs' signs (the counterpart of chain_forward.cu).
//
// Launch and shared memory are those of chain_forward. Sums over rows and steps for the weights are made by another kernel, from `signs`,
// `trajectory` and `d_output`. A program writes one row of `coefficient_sums`; their sum over the middle axis is the gradient.
// Macros: those of chain_forward but DDVI_KEEP, and DDVI_PATH_GRADIENT, DDVI_TRAJECTORY_GRADIENT, DDVI_NOISE_GRADIENT,
// DDVI_COEFFICIENT_GRADIENT (options.cuh).
#include "options.cuh"

#include "hidden.cuh"
#include "instructions.cuh"
#include "rng.cuh"
#include "rows.cuh"
#include "signs.cuh"
#include "states.cuh"
#include "steps.cuh"

constexpr bool kOfPath = DDVI_PATH_GRADIENT, kOfTrajectory = DDVI_TRAJECTORY_GRADIENT, kToNoise = DDVI_NOISE_GRADIENT;
constexpr bool kToCoefficients = DDVI_COEFFICIENT_GRADIENT, kToContext = kContext > 0;
constexpr bool kNeedsNoise = kNoisy && (kToNoise || kToCoefficients);
constexpr int kTurns = (5 + kWarps - 1) / kWarps;  // coefficients whose gradients a warp sums over the rows
constexpr int kRowWords = 4 * kSignWords + 4;  // of signs, with a gap against bank conflicts

struct Shared {
  Activations<BackwardUnits> x[2];
  WarpSums sums[2];
  alignas(16) uint32 signs[2][kRows][kRowWords];  // of this step and of the next
  SharedLayer<kShareSummed> weights_in;
  SharedLayer<kShareAdded> weights_out;
  Piece piece;
  Rows rows;
};

// Powers of two that bring the largest state of each row to [1, 2) and back: gradients may be far from the range of fp16.
DDVI_INLINE void row_scale(const float (&states)[kOwn], float &up, float &back) {
  float largest = 0.0f;
#pragma unroll
  for (int own = 0; own < kOwn; ++own) largest = fmaxf(largest, fabsf(states[own]));
#pragma unroll
  for (int mask = 8; mask < 32 / kCopies; mask *= 2) largest = fmaxf(largest, exchange(largest, mask));
  const int exponent = (float_bits(largest) >> 23) - 127, limited = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
  up = bits_float((127 - limited) << 23);
  back = bits_float((127 + limited) << 23);
}

// Four gradients where a ReLU was active, else 0; `mask` has the bit of unit 0, that of unit 1 is the next.
DDVI_INLINE void pass_active(float (&v)[4], const uint32 (&words)[2], uint32 mask) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    if (!(words[q] & mask)) v[q] = 0.0f;
    if (!(words[q] & mask << 1)) v[2 + q] = 0.0f;
  }
}

// This lane's part of the gradient of coefficient `index`, at its own states; away = (y - sqrt(alpha) y') / beta.
struct StepGradient {
  float upstream, y, following, output, xi, path, away;

  DDVI_INLINE float of(int index, const Coefficients &k) const {
    const float weighted = path * away;
    if (index == 0) return upstream * y;
    if (index == 1) return upstream * output;
    if (index == 2) return kOfPath ? upstream * xi + path * k.inverse_deviation : upstream * xi;  // the inverse may be infinite
    if (index == 3) return weighted * following;
    return 0.5f * (weighted * away - path * k.inverse_beta);
  }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1) chain_backward(
    const float *first,         // [G, H, D + C]
    const float *hidden,        // [G, 3, H, H], float32 in every precision
    const float *last,          // [G, D, H]
    const float *coefficients,  // [T, 5]: A, B, s, sqrt(alpha), beta
    const float *noise,         // [T, G, R, D]; null unless DDVI_NOISE is 1
    const int64 *order,         // [R], the rows sorted by group; null without an index, and with one arrays of rows have no axis G
    const int64 *starts,        // [G + 1], where each group starts in `order`; null without an index
    const int64 *state,         // [2], seed and first draw index; null unless DDVI_NOISE is 2
    const float *trajectory,    // [T + 1, G, R, D], start first
    const int *signs,           // [T, G, R, 4, H / 32], signs.cuh, steps in the order of the trajectory
    const float *outputs,       // [T, G, R, D], in the order of the trajectory; null unless DDVI_COEFFICIENT_GRADIENT
    const float *d_z,           // [G, R, D]; may be null
    const float *d_path,        // [G, R]; null unless DDVI_PATH_GRADIENT
    const float *d_trajectory,  // [T + 1, G, R, D]; null unless DDVI_TRAJECTORY_GRADIENT
    float *d_y_T,               // [G, R, D]
    float *d_context,           // [G, R, C]; may be null
    float *d_noise,             // [T, G, R, D]; null unless DDVI_NOISE_GRADIENT
    float *d_output,            // [T, G, R, D], gradient of the network's outputs, steps in the order of the trajectory
    float *coefficient_sums,    // [T, tiles G, 5], first axis step; null unless DDVI_COEFFICIENT_GRADIENT
    int64 offset, int64 groups, int64 rows, int64 rows_per_sample, int64 steps) {
  DDVI_SHARED(Shared, shared);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const Tile tile = tile_of(order, starts, groups, rows, blockIdx.x, blockIdx.y);
  const int64 tiles = (int64)gridDim.x * gridDim.y, own_tile = (int64)blockIdx.y * gridDim.x + blockIdx.x;
  if (tile.present <= 0) {
    if (kToCoefficients)
      for (int64 at = thread; at < 5 * steps; at += kThreads) coefficient_sums[(at / 5 * tiles + own_tile) * 5 + at % 5] = 0.0f;
    return;
  }
  const int64 all_rows = rows * gridDim.y, plane = all_rows * kLatent;
  const Place place = {lane};
  const bool present = tile.has(place.row());
  const int64 row = tile.row(place.row()), own_state = row * kLatent + place.coordinate(0);

  Draws draws = {};
#if DDVI_NOISE == DDVI_DRAWN
  draws = {(uint64)state[0], state[1] + offset, rows_per_sample};
#endif
  if (thread < kRows) {
    shared.rows.row[thread] = row;
    shared.rows.draw[thread] = DDVI_NOISE == DDVI_DRAWN ? draws.index(row) : 0;
  }
  // A thread copies 16 bytes of a row's signs.
  constexpr int parts = kSignWords;
  const int copied_row = thread / parts % kRows, copied_part = thread % parts;
  const bool copies = thread < kRows * parts && tile.has(copied_row);
  const int *next_signs = signs + ((steps - 1) * all_rows + tile.row(copied_row)) * (4 * kSignWords) + 4 * copied_part;
  auto fetch_signs = [&](int buffer) {
    if (copies) copy_later(shared.signs[buffer][copied_row] + 4 * copied_part, next_signs);
    next_signs -= all_rows * (4 * kSignWords);
  };
  fetch_signs(0);

  const int unit = BackwardUnits::unit(warp, g), sign = sign_place(unit);
  const uint32 mask = 1u << sign % 32;
  Matrix matrices[3];
#pragma unroll
  for (int layer = 0; layer < 3; ++layer)
    load_matrix<BackwardUnits, true>(matrices[layer], hidden + tile.group * 3 * kHidden * kHidden, layer, dynamic_shared, warp, lane);
  HeldWeights held_in, held_out;
  const float *own_first = first + (tile.group * kHidden + unit) * kInputs;
#pragma unroll
  for (int d = 0; d < kLatent; ++d) {
    held_in.of[d] = {own_first[d], own_first[kInputs + d]};
    held_out.of[d] = *(const float2 *)(last + (tile.group * kLatent + d) * kHidden + unit);
    if (kShareSummed) *(float2 *)&shared.weights_in[d][unit] = held_in.of[d];
    if (kShareAdded) *(float2 *)&shared.weights_out[d][unit] = held_out.of[d];
  }
  const SharedWeights shared_in = {&shared.weights_in[0][unit]}, shared_out = {&shared.weights_out[0][unit]};
  const auto &weights_in = choose<kShareSummed>(shared_in, held_in);
  const auto &weights_out = choose<kShareAdded>(shared_out, held_out);

  bool inside[kOwn], stores[kOwn];
  float u[kOwn], following[kOwn], coming[kOwn], coming_output[kOwn], coming_gradient[kOwn];
  const float path_gradient = kOfPath && present ? d_path[row] : 0.0f;
  // Where this lane reads the next state, output and gradient, and stores this step's gradients.
  const float *next_state = trajectory + (steps - 1) * plane + own_state, *next_output = outputs + (steps - 1) * plane + own_state;
  const float *next_gradient = d_trajectory + steps * plane + own_state;
  float *to_output = d_output + (steps - 1) * plane + own_state, *to_noise = d_noise + own_state;
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    inside[own] = present && place.exists(own);
    stores[own] = inside[own] && place.writes();
    u[own] = inside[own] && d_z ? d_z[own_state + 4 * own] : 0.0f;
    following[own] = inside[own] ? next_state[plane + 4 * own] : 0.0f;
  }
  auto load = [&](float(&to)[kOwn], const float *from) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) to[own] = inside[own] ? from[4 * own] : 0.0f;
  };
  auto load_next = [&] {
    load(coming, next_state);
    next_state -= plane;
    if (kToCoefficients) load(coming_output, next_output), next_output -= plane;
    if (kOfTrajectory) load(coming_gradient, next_gradient), next_gradient -= plane;
  };
  load_next();
  const Addresses<BackwardUnits> even(shared.x[0], warp, lane), odd(shared.x[1], warp, lane);
  float first_gradient[4] = {};  // before the first ReLU, summed over steps: that of the context is a product of it

  for (int begin = 0; begin < (int)steps; begin += kPiece) {
    const int end = begin + kPiece < (int)steps ? begin + kPiece : (int)steps;
    barrier();  // the rows are written, and nobody reads the piece before
    fill_coefficients(shared.piece, coefficients, end - begin, begin, 1);
    if (kNeedsNoise) fill_noise(shared.piece, shared.rows, noise, draws.seed, end - begin, begin, 1, plane);
    wait_for_copies();
    barrier();
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
      const int buffer = step & 1;
      const Coefficients k = shared.piece.coefficients[step - begin];
      uint32 words[4][2];
#pragma unroll
      for (int layer = 0; layer < 4; ++layer)
#pragma unroll
        for (int q = 0; q < 2; ++q) words[layer][q] = shared.signs[buffer][2 * t + q][layer * kSignWords + sign / 32];

      // With e = y - a y', a step's log-ratio is (|xi|^2 + 2 D log s - |e|^2 / beta - D log beta) / 2.
      float direct[kOwn], output_gradient[kOwn];
      float coefficient_gradient[kTurns] = {};
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const float y = coming[own], p = place.exists(own) ? path_gradient : 0.0f, away = kOfPath ? (y - k.scale * following[own]) * k.inverse_beta : 0.0f;
        if (kOfTrajectory) u[own] += coming_gradient[own];
        if (kOfPath) u[own] += p * k.scale * away;
        direct[own] = k.state * u[own] - (kOfPath ? p * away : 0.0f);
        output_gradient[own] = k.output * u[own];
        const float xi = kNeedsNoise ? shared.piece.noise[step - begin][place.state(own)] : 0.0f;
        if (kToCoefficients) {
          const StepGradient gradient = {u[own], y, following[own], coming_output[own], inside[own] ? xi : 0.0f, p, away};
#pragma unroll
          for (int turn = 0; turn < kTurns; ++turn) coefficient_gradient[turn] += gradient.of(turn * kWarps + warp, k);
        }
        following[own] = y;
        if (stores[own] && warp == 0) to_output[4 * own] = output_gradient[own];
        if (kToNoise && stores[own] && warp == 1) to_noise[4 * own] = k.deviation * u[own] + p * xi;
      }
      to_output -= plane;
      to_noise += plane;
      if (step + 1 < (int)steps) {
        fetch_signs(buffer ^ 1);
        load_next();
      }
      float back = 1.0f;
      if (kSplit) {
        float up;
        row_scale(output_gradient, up, back);
#pragma unroll
        for (int own = 0; own < kOwn; ++own) output_gradient[own] *= up;
      }

      float v[4] = {};
      add_states(v, weights_out, output_gradient, lane);
      pass_active(v, words[3], mask);
      store(even, v);
      barrier();
      float residual[4] = {}, w[4];
      add_product(residual, matrices[2], even);
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = residual[j];
      pass_active(w, words[2], mask);
      store(odd, w);
      if (kToCoefficients) {
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
          const float sum = sum_of_states(coefficient_gradient[turn]);
          const int index = turn * kWarps + warp;
          if (lane == 0 && index < 5) coefficient_sums[(step * tiles + own_tile) * 5 + index] = sum;
        }
      }
      barrier();
      float x[4] = {};
      add_product(x, matrices[1], odd);
      pass_active(x, words[1], mask);
      store(even, x);
      barrier();
      float d[4] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (kResidual) d[j] = residual[j];
      add_product(d, matrices[0], even);
      pass_active(d, words[0], mask);
      if (kToContext)
#pragma unroll
        for (int j = 0; j < 4; ++j) first_gradient[j] += kSplit ? from_lane(back, 2 * t + j % 2) * d[j] : d[j];
      sum_over_units(shared.sums[buffer], weights_in, d, warp, lane);
      wait_for_copies();
      barrier();
      float sums[kOwn];
      total(sums, shared.sums[buffer], place);
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const float gradient = direct[own] + (kSplit ? back * sums[own] : sums[own]);
        u[own] = place.exists(own) ? gradient : 0.0f;
      }
    }
  }

  const int64 same_row = shared.rows.row[place.row()];  // read again, so that no register keeps it through the chain
#pragma unroll
  for (int own = 0; own < kOwn; ++own) {
    const int64 at = same_row * kLatent + place.coordinate(own);
    if (kOfTrajectory && stores[own]) u[own] += d_trajectory[at];
    if (stores[own] && warp == 0) d_y_T[at] = u[own];
  }
  // The context's gradient, D columns at a time.
  if (kToContext && d_context)
    for (int column = 0; column < kContext; column += kLatent) {
      HeldWeights of_context;
#pragma unroll
      for (int d = 0; d < kLatent; ++d) {
        const int input = kLatent + column + d;
        of_context.of[d] = {0.0f, 0.0f};
        const float *own = first + (tile.group * kHidden + unit) * kInputs + input;
        if (input < kInputs) of_context.of[d] = {own[0], own[kInputs]};
      }
      barrier();
      sum_over_units(shared.sums[0], of_context, first_gradient, warp, lane);
      barrier();
      float sums[kOwn];
      total(sums, shared.sums[0], place);
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int c = column + place.coordinate(own);
        if (stores[own] && warp == 0 && c < kContext) d_context[same_row * kContext + c] = sums[own];
      }
    }
}
