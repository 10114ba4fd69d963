// Position of a call in the random numbers; the same in every instruction set.
#pragma once

#include <cstdint>

struct Draws {
  uint64_t seed;
  int64_t first_index;
  int64_t rows_per_sample;  // rows of one importance sample (or group)

  // Row n of sample l is draw first_index + n + l * 2^40.
  uint64_t index(int64_t row) const {
    const uint64_t sample = (uint64_t)(row / rows_per_sample), within = (uint64_t)(row % rows_per_sample);
    return (uint64_t)first_index + within + (sample << 40);
  }
};
