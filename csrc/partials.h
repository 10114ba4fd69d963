// Sums over samples in backward passes: each chunk of tiles has its own, and they are added in a fixed order.
// Included once per instruction set.

// Offsets of the sums of one chunk of samples in its part of the partial sums.
struct PartialLayout {
  int64_t hidden, first_turned, last, last_bias, table, columns, size;

  template <class Arguments>
  explicit PartialLayout(const Arguments& c) {
    int64_t next = 0;
    auto take = [&](int64_t floats) { return (next += (floats + 15) / 16 * 16) - (floats + 15) / 16 * 16; };
    hidden = take(3 * c.hidden_width * c.hidden_width);
    first_turned = take((c.latent + c.context_width) * c.hidden_width);
    last = take(c.latent * c.hidden_width);
    last_bias = take(c.latent);
    table = take(c.steps * 4 * c.hidden_width);
    columns = take(c.steps * 5);
    size = next;
  }
};

// Adds the chunks' partial sums in their order. Absent outputs are skipped.
template <class Arguments>
void reduce_partials(const Arguments& c, const PartialLayout& layout, const float* partial, int64_t chunks, float* d_columns) {
  const int64_t inputs = c.latent + c.context_width, hidden = c.hidden_width, square = hidden * hidden;
  auto reduce = [&](float* out, int64_t group, int64_t offset, int64_t floats) {
    if (out == nullptr) return;
    const float* first = partial + group * chunks * layout.size + offset;
    for (int64_t i = 0; i < floats; i += kLanes) {
      vf total = load_some(first + i, floats - i);
      for (int64_t chunk = 1; chunk < chunks; ++chunk) total += load_some(first + chunk * layout.size + i, floats - i);
      store_some(out + i, total, floats - i);
    }
  };
  ddvi::parallel_for(c.threads, 5 * c.groups, [&](int64_t item) {
    const int64_t group = item / 5, part = item % 5;
    if (c.d_hidden == nullptr) return;
    if (part < 3) reduce(c.d_hidden + (3 * group + part) * square, group, layout.hidden + part * square, square);
    if (part == 3) reduce(c.d_time_table + group * c.steps * 4 * hidden, group, layout.table, c.steps * 4 * hidden);
    if (part != 4) return;
    reduce(c.d_last + group * c.latent * hidden, group, layout.last, c.latent * hidden);
    reduce(c.d_last_bias + group * c.latent, group, layout.last_bias, c.latent);
    for (int64_t h = 0; h < hidden; ++h)
      for (int64_t i = 0; i < inputs; ++i) {
        float total = 0.0f;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(group * chunks + chunk) * layout.size + layout.first_turned + i * hidden + h];
        c.d_first[(group * hidden + h) * inputs + i] = total;
      }
  });
  if (d_columns == nullptr) return;
  for (int64_t i = 0; i < 5 * c.steps; ++i) {
    double total = 0.0;
    for (int64_t part = 0; part < c.groups * chunks; ++part) total += partial[part * layout.size + layout.columns + i];
    d_columns[i] = (float)total;
  }
}

// Calls `backward(tile, layout, partial)` for every tile, with the partial sums of its chunk, and reduces them to the gradients of the
// weights (absent ones are skipped) and of the table `d_columns` (T, 5).
template <class Arguments, class Backward>
void sum_over_tiles(const Arguments& c, float* d_columns, const Backward& backward) {
  int64_t most_tiles = 1;
  for (int64_t group = 0; group < c.groups; ++group) {
    const Segment part = segment(c, group);
    most_tiles = std::max(most_tiles, tile_count(part, tile_size_by_shape(part.rows())));
  }
  const int64_t chunks = std::max<int64_t>(1, std::min(most_tiles, 16 / c.groups));
  const PartialLayout layout(c);
  float* partials = ddvi::scratch(ddvi::kPartialSlot, (size_t)(c.groups * chunks * layout.size));
  ddvi::parallel_for(c.threads, c.groups * chunks, [&](int64_t item) {
    const int64_t group = item / chunks, chunk = item % chunks;
    float* partial = partials + item * layout.size;
    std::memset(partial, 0, (size_t)layout.size * sizeof(float));
    const Segment part = segment(c, group);
    const int64_t size = tile_size_by_shape(part.rows()), tiles = tile_count(part, size);
    for (int64_t index = tiles * chunk / chunks; index < tiles * (chunk + 1) / chunks; ++index)
      backward(make_tile(c, group, index, size), layout, partial);
  });
  reduce_partials(c, layout, partials, chunks, d_columns);
}
