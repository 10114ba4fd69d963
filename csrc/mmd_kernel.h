// Sums of Gaussian kernels between two sets of rows, in tiles of products. Included once per instruction set.

#include "simd.h"
#include "gemm.h"

constexpr int64_t kPanelColumns = 192;  // rows of b, transposed, that stay in the second-level cache
constexpr int64_t kRowBlock = 32;       // rows of a that are paired with them
constexpr int64_t kDepth = 112;         // features at a time: a 64-column strip of that depth stays in the first-level cache
constexpr int64_t kStrip = 64;

// Rows [first, first + count) of `rows` (n, P), transposed to strips (P, kStrip), zero beyond the last.
DDVI_INLINE void turn(const float* rows, int64_t first, int64_t count, int64_t width, float* out) {
  for (int64_t strip = 0; strip * kStrip < count; ++strip, out += width * kStrip)
    for (int64_t i = 0; i < kStrip; ++i) {
      const int64_t row = strip * kStrip + i;
      for (int64_t p = 0; p < width; ++p) out[p * kStrip + i] = row < count ? rows[(first + row) * width + p] : 0.0f;
    }
}

// Products of `count` rows of a with one strip into `out` (count, kStrip).
DDVI_INLINE void strip_products(const float* a, int64_t count, int64_t width, const float* strip, float* out) {
  for (int64_t p = 0; p < width; p += kDepth) {
    const int64_t depth = std::min(kDepth, width - p);
    gemm<MultiplyAdd>(a + p, width, 1, strip + p * kStrip, kStrip, count, depth, kStrip, [&](int64_t row, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
      for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); ++i) {
        float* place = out + (row + i) * kStrip + column;
        store(place, p == 0 ? v[i] : load(place) + v[i]);
      }
    });
  }
}

// Squared lengths of the rows of a strip, added up in the order of `strip_products`: equal rows, however long, are at the distance 0.
inline void strip_lengths(const MmdArguments& m, int64_t strip) {
  const int64_t first = strip * kStrip, count = std::min(kStrip, m.a_rows - first);
  float* turned = ddvi::scratch(ddvi::kTileSlot, (size_t)(kStrip * m.width));
  turn(m.a, first, count, m.width, turned);
  for (int64_t i = 0; i < count; i += kLanes) {
    vf total = {};
    for (int64_t begin = 0; begin < m.width; begin += kDepth) {
      vf part = {};
      for (int64_t p = begin; p < std::min(begin + kDepth, m.width); ++p) {
        const vf value = load(turned + p * kStrip + i);
        part = MultiplyAdd::apply(part, value, value);
      }
      total = begin == 0 ? part : total + part;
    }
    float each[kLanes];
    store(each, total);
    std::copy(each, each + std::min<int64_t>(kLanes, count - i), m.lengths + first + i);
  }
}

inline void mmd_lengths(const MmdArguments& m) {
  ddvi::parallel_for(m.threads, (m.a_rows + kStrip - 1) / kStrip, [&](int64_t strip) { strip_lengths(m, strip); });
}

// sum_s scale_s exp(rate_s d) for d = max(0, |a|^2 + |b|^2 - 2 ab).
DDVI_INLINE vf kernel(const MmdArguments& m, const float* scale, vf product, float a_norm, vf b_norm) {
  const vf distance = max(vf{}, a_norm + b_norm - 2.0f * product);
  vf total = {};
  for (int64_t s = 0; s < m.widths; ++s) total += scale[s] * exp(distance * m.rate[s]);
  return total;
}

// Sum of kernels between panel `panel` of b and the rows of a; in the symmetric case rows above the panel count twice, below not at all.
inline double panel_sum(const MmdArguments& m, int64_t panel) {
  const int64_t first = panel * kPanelColumns, count = std::min(kPanelColumns, m.b_rows - first), width = m.width;
  const int64_t end = m.symmetric ? first + count : m.a_rows;
  float* turned = ddvi::scratch(ddvi::kTileSlot, (size_t)(kPanelColumns * width + kRowBlock * kStrip));
  float* products = turned + kPanelColumns * width;
  float ones[kSigmas];
  std::fill(ones, ones + kSigmas, 1.0f);
  turn(m.b, first, count, width, turned);
  double total = 0.0;
  for (int64_t row = 0; row < end; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, end - row);
    for (int64_t strip = 0; strip * kStrip < count; ++strip) {
      const int64_t column = first + strip * kStrip, columns = std::min(kStrip, count - strip * kStrip);
      if (m.symmetric && row >= column + columns) continue;
      strip_products(m.a + row * width, rows, width, turned + strip * kStrip * width, products);
      for (int64_t i = 0; i < rows; ++i) {
        vf sums = {};
        for (int64_t j = 0; j < columns; j += kLanes) {
          const vf value = kernel(m, ones, load(products + i * kStrip + j), m.a_norm[row + i], load_some(m.b_norm + column + j, columns - j));
          float each[kLanes];
          store(each, value);
          // In a symmetric matrix the part right of the diagonal counts for both.
          const int64_t from = m.symmetric ? std::max<int64_t>(0, row + i - column - j) : 0;
          if (from == 0 && columns - j >= kLanes && (!m.symmetric || row + i < column + j)) {
            sums += m.symmetric ? 2.0f * value : value;
            continue;
          }
          for (int64_t l = from; l < std::min<int64_t>(kLanes, columns - j); ++l) total += !m.symmetric ? each[l] : row + i < column + j + l ? 2.0 * each[l] : (double)m.widths;  // the diagonal is known
        }
        total += sum(sums);
      }
    }
  }
  return total;
}

inline void mmd_sum(const MmdArguments& m) {
  const int64_t panels = (m.b_rows + kPanelColumns - 1) / kPanelColumns;
  ddvi::parallel_for(m.threads, panels, [&](int64_t item) { m.sums[panels - 1 - item] = panel_sum(m, panels - 1 - item); });
}

// d_a[i] += factor sum_j k'_ij (b_j - a_i) with k' = sum_s exp(rate_s d) / s, for one block of rows of a.
inline void block_gradient(const MmdArguments& m, int64_t block) {
  const int64_t first = block * kStrip, count = std::min(kStrip, m.a_rows - first), width = m.width;
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  float* turned = ddvi::scratch(ddvi::kTileSlot, (size_t)(kStrip * (width + 2 * padded + 2 * kStrip)));
  float *products = turned + kStrip * width, *total = products + kStrip * kStrip, *others = total + kStrip * padded;
  float mass[kStrip] = {}, scale[kSigmas];
  for (int64_t s = 0; s < m.widths; ++s) scale[s] = -2.0f * m.rate[s] * m.factor;
  turn(m.a, first, count, width, turned);
  std::fill(total, total + kStrip * padded, 0.0f);
  for (int64_t row = 0; row < m.b_rows; row += kStrip) {
    const int64_t rows = std::min(kStrip, m.b_rows - row);
    strip_products(m.b + row * width, rows, width, turned, products);
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t i = 0; i < kStrip; i += kLanes) {
        float* place = products + j * kStrip + i;
        const vf force = i < count ? kernel(m, scale, load(place), m.b_norm[row + j], load_some(m.a_norm + first + i, count - i)) : vf{};
        store(place, force);
        // A row has no gradient from itself; left in, its terms would cancel only up to rounding.
        if (m.symmetric && row + j - first >= i && row + j - first < i + kLanes) place[row + j - first - i] = 0.0f;
        store(mass + i, load(mass + i) + load(place));
      }
    // Rows are padded to whole vectors, because the product reads them so.
    for (int64_t j = 0; j < rows; ++j) {
      std::copy(m.b + (row + j) * width, m.b + (row + j + 1) * width, others + j * padded);
      std::fill(others + j * padded + width, others + (j + 1) * padded, 0.0f);
    }
    gemm<MultiplyAdd>(products, 1, kStrip, others, padded, count, rows, padded, [&](int64_t i, int64_t column, auto& v) DDVI_INLINE_CLOSURE {
      for (size_t r = 0; r < sizeof(v) / sizeof(v[0]); ++r) {
        float* place = total + (i + r) * padded + column;
        store(place, load(place) + v[r]);
      }
    });
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t p = 0; p < width; ++p) m.d_a[(first + i) * width + p] += total[i * padded + p] - mass[i] * m.a[(first + i) * width + p];
}

inline void mmd_gradient(const MmdArguments& m) {
  ddvi::parallel_for(m.threads, (m.a_rows + kStrip - 1) / kStrip, [&](int64_t block) { block_gradient(m, block); });
}
