#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

constexpr int64_t kSigmas = 64;  // most kernel widths

struct MmdArguments {
  int64_t a_rows, b_rows, width, widths, threads;
  bool symmetric;       // a is b
  const float* a;       // (a_rows, P)
  const float* b;       // (b_rows, P)
  const float* a_norm;  // (a_rows) squared lengths
  const float* b_norm;  // (b_rows)
  float rate[kSigmas];  // -1 / (2 sigma)
  double* sums;         // one for each panel of b
  float* lengths;       // (a_rows) squared lengths to be computed
  float factor;         // of the gradient
  float* d_a;           // (a_rows, P), added to
};

#define DDVI_KERNEL "mmd_kernel.h"
#include "each_isa.h"

namespace {

// Squared lengths of `count` rows, as the distances of rows from themselves need them.
std::vector<float> squared_lengths(const float* rows, int64_t count, int64_t width, int64_t threads) {
  std::vector<float> lengths((size_t)count);
  MmdArguments m{};
  m.a_rows = count, m.width = width, m.threads = threads;
  m.a = rows, m.lengths = lengths.data();
  DDVI_DISPATCH(mmd_lengths(m))
  return lengths;
}

MmdArguments prepare(const float* a, int64_t a_rows, const float* b, int64_t b_rows, int64_t width, const float* sigmas, int64_t widths, int64_t threads,
                     const std::vector<float>& a_norm, const std::vector<float>& b_norm) {
  MmdArguments m{};
  m.a_rows = a_rows, m.b_rows = b_rows, m.width = width, m.widths = widths, m.threads = threads;
  m.symmetric = a == b && a_rows == b_rows;
  m.a = a, m.b = b, m.a_norm = a_norm.data(), m.b_norm = b_norm.data();
  for (int64_t s = 0; s < widths; ++s) m.rate[s] = -0.5f / sigmas[s];
  return m;
}

}  // namespace

// sum_ij sum_s exp(-|a_i - b_j|^2 / (2 sigma_s)); half the work where `a` and `b` are one array. NaN where a squared length is not finite: the
// distance of such a row from itself, which is not computed, would be.
DDVI_EXPORT double ddvi_mmd_sum(const float* a, int64_t a_rows, const float* b, int64_t b_rows, int64_t width, const float* sigmas, int64_t widths,
                                int64_t threads) {
  const std::vector<float> a_norm = squared_lengths(a, a_rows, width, threads), b_norm = squared_lengths(b, b_rows, width, threads);
  const auto broken = [](float length) { return !std::isfinite(length); };
  if (std::any_of(a_norm.begin(), a_norm.end(), broken) || std::any_of(b_norm.begin(), b_norm.end(), broken)) return std::nan("");
  MmdArguments m = prepare(a, a_rows, b, b_rows, width, sigmas, widths, threads, a_norm, b_norm);
  std::vector<double> sums((size_t)b_rows);
  m.sums = sums.data();
  DDVI_DISPATCH(mmd_sum(m))
  double total = 0.0;
  for (const double part : sums) total += part;
  return total;
}

// Adds `factor` times the gradient of the sum by its first argument: twice that is the whole gradient where `a` is `b`.
DDVI_EXPORT void ddvi_mmd_gradient(const float* a, int64_t a_rows, const float* b, int64_t b_rows, int64_t width, const float* sigmas, int64_t widths,
                                   int64_t threads, float factor, float* d_a) {
  const std::vector<float> a_norm = squared_lengths(a, a_rows, width, threads), b_norm = squared_lengths(b, b_rows, width, threads);
  MmdArguments m = prepare(a, a_rows, b, b_rows, width, sigmas, widths, threads, a_norm, b_norm);
  m.factor = factor;
  m.d_a = d_a;
  DDVI_DISPATCH(mmd_gradient(m))
}
