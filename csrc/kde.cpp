#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"

constexpr int64_t kBandwidths = 64, kWidth = 4096;  // most that the kernels' local arrays hold

struct KdeArguments {
  int64_t rows, count, width, bandwidths, threads;  // N, M, D, S
  const float* z;                                   // (N, D)
  const float* points;                              // (D, M)
  float rate[kBandwidths];                          // -1 / (2 h^2)
  double constant[kBandwidths];                     // log M + D log h + D/2 log 2 pi
  const unsigned char* signs;                       // (D) what coordinates of points are not finite: 1 NaN, 2 infinite, 4 minus infinite
  float* each;                                      // (N, S) log-density under each bandwidth
  const float* weight;                              // (N, S) upstream gradient of `each`
  float* d_z;                                       // (N, D) or null
  float* d_points;                                  // (D, M) or null
};

#define DDVI_KERNEL "kde_kernel.h"
#include "each_isa.h"

namespace {

KdeArguments prepare(int64_t rows, int64_t count, int64_t width, int64_t bandwidths, int64_t threads, const float* z, const float* points, const float* h) {
  KdeArguments k{};
  k.rows = rows, k.count = count, k.width = width, k.bandwidths = bandwidths, k.threads = threads;
  k.z = z, k.points = points;
  for (int64_t s = 0; s < bandwidths; ++s) {
    k.rate[s] = (float)(-0.5 / ((double)h[s] * h[s]));
    k.constant[s] = std::log((double)count) + width * (std::log((double)h[s]) + 0.91893853320467274178);
  }
  return k;
}

}  // namespace

DDVI_EXPORT void ddvi_kde_forward(int64_t rows, int64_t count, int64_t width, int64_t bandwidths, int64_t threads, const float* z, const float* points,
                                  const float* h, float* each) {
  KdeArguments k = prepare(rows, count, width, bandwidths, threads, z, points, h);
  k.each = each;
  DDVI_DISPATCH(kde_forward(k))
}

DDVI_EXPORT void ddvi_kde_backward(int64_t rows, int64_t count, int64_t width, int64_t bandwidths, int64_t threads, const float* z, const float* points,
                                   const float* h, float* each, const float* weight, float* d_z, float* d_points) {
  KdeArguments k = prepare(rows, count, width, bandwidths, threads, z, points, h);
  k.each = each, k.weight = weight, k.d_z = d_z, k.d_points = d_points;
  DDVI_DISPATCH(kde_backward(k))
}
