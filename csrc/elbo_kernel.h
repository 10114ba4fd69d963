// Log-likelihoods and other sums over the last axis, each with its gradient in one pass. Included once per instruction set.

#include "simd.h"

DDVI_INLINE vf softplus(vf x) { return max(vf{}, x) + log1p_unit(exp(-abs(x))); }

DDVI_INLINE vf sigmoid(vf x) {
  const vf small = exp(-abs(x));
  const vf inverse = 1.0f / (1.0f + small);
  return where(x >= 0.0f, inverse, small * inverse);
}

// One element of each operation: its value, and its gradients to the operands a, b, c.
struct Bernoulli {  // logits, x
  static DDVI_INLINE vf value(vf a, vf b, vf, float) { return b * a - softplus(a); }
  static DDVI_INLINE void gradient(vf a, vf b, vf, float, vf& da, vf& db, vf&) { da = b - sigmoid(a), db = a; }
};

struct Gaussian {  // mean, x, scale
  static DDVI_INLINE vf value(vf a, vf b, vf c, float) {
    const vf away = (b - a) / c;
    return -0.5f * away * away - log_any(c) - 0.91893853320467274f;
  }
  static DDVI_INLINE void gradient(vf a, vf b, vf c, float, vf& da, vf& db, vf& dc) {
    const vf away = (b - a) / c;
    da = away / c, db = -da, dc = (away * away - 1.0f) / c;
  }
};

struct Binomial {  // logits, counts, log of the binomial coefficient
  static DDVI_INLINE vf value(vf a, vf b, vf c, float total) { return c + b * a - total * softplus(a); }
  static DDVI_INLINE void gradient(vf a, vf b, vf, float total, vf& da, vf& db, vf&) { da = b - total * sigmoid(a), db = a; }
};

struct GaussianKl {  // mean, log variance
  static DDVI_INLINE vf value(vf a, vf b, vf, float) { return 0.5f * (a * a + exp(b) - 1.0f - b); }
  static DDVI_INLINE void gradient(vf a, vf b, vf, float, vf& da, vf& db, vf&) { da = a, db = 0.5f * (exp(b) - 1.0f); }
};

struct GaussianLogProb {  // z, mean, log variance
  static DDVI_INLINE vf value(vf a, vf b, vf c, float) { return -0.5f * ((a - b) * (a - b) * exp(-c) + c + 1.8378770664093455f); }
  static DDVI_INLINE void gradient(vf a, vf b, vf c, float, vf& da, vf& db, vf& dc) {
    const vf precision = exp(-c);
    da = (b - a) * precision, db = -da, dc = 0.5f * ((a - b) * (a - b) * precision - 1.0f);
  }
};

// An operand's row: repeated after `period` rows (leading axes broadcast), or one number for all.
DDVI_INLINE vf operand(const Operand& o, int64_t row, int64_t width, int64_t column, float fill) {
  if (o.data == nullptr) return spread(fill);
  if (o.period == 0) return spread(o.data[0]);
  return width - column >= kLanes ? load(o.data + row % o.period * width + column) : load_first(o.data + row % o.period * width + column, (int)(width - column), fill);
}

template <class Op>
void forward(const ElboArguments& e) {
  const int64_t chunk = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, e.width));
  ddvi::parallel_for(e.threads, (e.rows + chunk - 1) / chunk, [&](int64_t item) {
    for (int64_t row = item * chunk; row < std::min(e.rows, (item + 1) * chunk); ++row) {
      // Sixteen vectors at a time are added to a double, as the sum over an image's pixels cancels in part.
      double total = 0.0;
      for (int64_t block = 0; block < e.width; block += 16 * kLanes) {
        vf sums = {};
        for (int64_t p = block; p < std::min(e.width, block + 16 * kLanes); p += kLanes) {
          const vf value = Op::value(operand(e.a, row, e.width, p, 0.0f), operand(e.b, row, e.width, p, 0.0f), operand(e.c, row, e.width, p, 1.0f), e.total);
          sums += e.width - p >= kLanes ? value : load_first((const float*)&value, (int)(e.width - p));
        }
        total += sum(sums);
      }
      e.out[row] = (float)total;
    }
  });
}

template <class Op>
void backward(const ElboArguments& e) {
  const int64_t chunk = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, e.width));
  ddvi::parallel_for(e.threads, (e.rows + chunk - 1) / chunk, [&](int64_t item) {
    for (int64_t row = item * chunk; row < std::min(e.rows, (item + 1) * chunk); ++row)
      for (int64_t p = 0; p < e.width; p += kLanes) {
        vf da = {}, db = {}, dc = {};
        Op::gradient(operand(e.a, row, e.width, p, 0.0f), operand(e.b, row, e.width, p, 0.0f), operand(e.c, row, e.width, p, 1.0f), e.total, da, db, dc);
        const float g = e.upstream[row];
        const int64_t place = row * e.width + p, left = e.width - p;
        if (e.d_a) store_some(e.d_a + place, g * da, left);
        if (e.d_b) store_some(e.d_b + place, g * db, left);
        if (e.d_c) store_some(e.d_c + place, g * dc, left);
      }
  });
}

template <class Op>
void run(const ElboArguments& e) {
  e.upstream ? backward<Op>(e) : forward<Op>(e);
}

inline void elbo(int64_t operation, const ElboArguments& e) {
  switch (operation) {
    case 0: return run<Bernoulli>(e);
    case 1: return run<Gaussian>(e);
    case 2: return run<Binomial>(e);
    case 3: return run<GaussianKl>(e);
    default: return run<GaussianLogProb>(e);
  }
}

inline void log_mean_exp(const float* in, int64_t rows, int64_t width, int64_t threads, float* out) {
  ddvi::parallel_for(threads, (rows + 63) / 64, [&](int64_t item) {
    for (int64_t row = item * 64; row < std::min(rows, (item + 1) * 64); ++row) {
      const float* values = in + row * width;
      float highest = -__builtin_inff();
      bool broken = false;
      for (int64_t i = 0; i < width; ++i) {
        highest = std::max(highest, values[i]);
        broken |= values[i] != values[i];
      }
      if (broken || std::isinf(highest)) {
        out[row] = broken ? __builtin_nanf("") : highest;
        continue;
      }
      vf sums = {};
      for (int64_t i = 0; i < width; i += kLanes)
        sums += exp((width - i >= kLanes ? load(values + i) : load_first(values + i, (int)(width - i), -__builtin_inff())) - highest);
      out[row] = (float)(highest + std::log((double)sum(sums) / (double)width));
    }
  });
}
