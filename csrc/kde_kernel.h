// Gaussian kernel density for all bandwidths in one pass of distances. Points are stored as (D, M), with samples in the lanes.
// Included once per instruction set.

#include "simd.h"

constexpr int64_t kPoints = 512;  // points whose distances are in memory at a time: 2 KiB

// Squared distances of one z (D) to points [first, first + count) into `out`, padded with `fill`; returns the smallest.
DDVI_INLINE float distances(const KdeArguments& k, const float* z, int64_t first, int64_t count, float* out) {
  vf smallest = spread(__builtin_inff());
  for (int64_t i = 0; i < count; i += kLanes) {
    vf total = {};
    for (int64_t d = 0; d < k.width; ++d) {
      const vf away = load_some(k.points + d * k.count + first + i, count - i) - z[d];
      total += away * away;
    }
    if (count - i < kLanes) total = load_first((const float*)&total, (int)(count - i), __builtin_inff());
    store(out + i, total);
    smallest = min(smallest, total);
  }
  return lowest(smallest);
}

// Whether the squared distance of z to some point is NaN; comparisons of distances would pass over it.
inline bool has_nan(const KdeArguments& k, const float* z) {
  for (int64_t d = 0; d < k.width; ++d) {
    const int infinite = z[d] == __builtin_inff() ? 2 : z[d] == -__builtin_inff() ? 4 : 0;
    if (z[d] != z[d] || (k.signs[d] & (1 | infinite))) return true;
  }
  return false;
}

// Log-density of one row under every bandwidth: an online log-sum-exp whose reference is the nearest point so far, the same for
// every bandwidth.
inline void kde_row(const KdeArguments& k, const float* z, float* each) {
  if (has_nan(k, z)) return std::fill(each, each + k.bandwidths, __builtin_nanf(""));
  alignas(64) float squared[kPoints];
  float nearest = __builtin_inff();
  double sums[kBandwidths] = {};
  for (int64_t first = 0; first < k.count; first += kPoints) {
    const int64_t count = std::min(kPoints, k.count - first);
    const float smallest = distances(k, z, first, count, squared);
    if (smallest < nearest) {
      for (int64_t s = 0; s < k.bandwidths; ++s) sums[s] *= std::exp((double)k.rate[s] * ((double)nearest - smallest));
      if (nearest == __builtin_inff()) std::fill(sums, sums + kBandwidths, 0.0);
      nearest = smallest;
    }
    for (int64_t s = 0; s < k.bandwidths; ++s) {
      vf total = {};
      const float rate = k.rate[s];
      // Beyond this distance, which rounding can make that of the nearest, the exponential is zero in float32: most points, at a narrow bandwidth.
      const float far = nearest + 87.4f / -rate;
      for (int64_t i = 0; i < count; i += kLanes) {
        const vf distance = load(squared + i);
        if (any(distance <= far)) total += exp((distance - nearest) * rate);
      }
      sums[s] += sum(total);
    }
  }
  if (nearest == __builtin_inff()) return std::fill(each, each + k.bandwidths, -__builtin_inff());
  for (int64_t s = 0; s < k.bandwidths; ++s) each[s] = (float)((double)k.rate[s] * nearest + std::log(sums[s]) - k.constant[s]);
}

// The `signs` of points: (D, M) to (D).
inline std::vector<unsigned char> signs_of(const KdeArguments& k) {
  std::vector<unsigned char> signs((size_t)k.width);
  for (int64_t d = 0; d < k.width; ++d)
    for (const float* p = k.points + d * k.count; p < k.points + (d + 1) * k.count; ++p)
      signs[(size_t)d] |= (unsigned char)((*p != *p) | (*p == __builtin_inff()) << 1 | (*p == -__builtin_inff()) << 2);
  return signs;
}

inline void kde_forward(KdeArguments k) {
  const std::vector<unsigned char> signs = signs_of(k);
  k.signs = signs.data();
  ddvi::parallel_for(k.threads, k.rows, [&](int64_t row) { kde_row(k, k.z + row * k.width, k.each + row * k.bandwidths); });
}

// sum_s weight_s exp(log-kernel_s(distance)) / h_s^2: weight of each point in the gradient of z, in place of its squared distance.
DDVI_INLINE void pulls(const KdeArguments& k, const float* weight, const float* each, int64_t count, float* squared) {
  float offset[kBandwidths], far[kBandwidths];
  for (int64_t s = 0; s < k.bandwidths; ++s) {
    offset[s] = (float)((double)each[s] + k.constant[s]);
    far[s] = weight[s] == 0.0f ? -1.0f : (offset[s] - 87.4f) / k.rate[s];
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    const vf distance = load(squared + i);
    vf total = {};
    for (int64_t s = 0; s < k.bandwidths; ++s)
      if (any(distance <= far[s])) total += weight[s] * exp(distance * k.rate[s] - offset[s]);
    store(squared + i, where(distance == __builtin_inff(), vf{}, total));
  }
}

// `d_z` and, per chunk of rows, `partial` (D, M): the gradient to the points.
inline void kde_backward_row(const KdeArguments& k, int64_t row, float* partial) {
  alignas(64) float squared[kPoints];
  const float* z = k.z + row * k.width;
  float total[kWidth] = {}, weight[kBandwidths];
  for (int64_t s = 0; s < k.bandwidths; ++s) weight[s] = k.weight[row * k.bandwidths + s] * (-2.0f * k.rate[s]);
  for (int64_t first = 0; first < k.count; first += kPoints) {
    const int64_t count = std::min(kPoints, k.count - first);
    distances(k, z, first, count, squared);
    // A log-density that is not finite has no derivative.
    if (!(std::abs(k.each[row * k.bandwidths]) < __builtin_inff())) std::fill(squared, squared + kPoints, __builtin_nanf(""));
    else pulls(k, weight, k.each + row * k.bandwidths, count, squared);
    for (int64_t d = 0; d < k.width; ++d) {
      vf sums = {};
      for (int64_t i = 0; i < count; i += kLanes) {
        const vf force = load(squared + i) * (load_some(k.points + d * k.count + first + i, count - i) - z[d]);
        sums += force;
        if (partial == nullptr) continue;
        float* place = partial + d * k.count + first + i;
        store_some(place, load_some(place, count - i) - force, count - i);
      }
      total[d] += sum(sums);
    }
  }
  if (k.d_z) std::copy(total, total + k.width, k.d_z + row * k.width);
}

inline void kde_backward(const KdeArguments& k) {
  // The number of chunks follows from the shape, so that the points' gradient is summed in one order.
  const int64_t chunks = k.d_points ? std::min<int64_t>(8, k.rows) : k.rows, size = k.width * k.count;
  float* partials = k.d_points ? ddvi::scratch(ddvi::kPartialSlot, (size_t)(chunks * size)) : nullptr;
  ddvi::parallel_for(k.threads, chunks, [&](int64_t chunk) {
    float* partial = partials ? partials + chunk * size : nullptr;
    if (partial) std::fill(partial, partial + size, 0.0f);
    for (int64_t row = k.rows * chunk / chunks; row < k.rows * (chunk + 1) / chunks; ++row) kde_backward_row(k, row, partial);
  });
  if (k.d_points == nullptr) return;
  for (int64_t i = 0; i < size; ++i) {
    float total = 0.0f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partials[chunk * size + i];
    k.d_points[i] = total;
  }
}
