// Which rows a program has: eight of one group, or of those that an index gives one group.
#pragma once

#include "instructions.cuh"

struct Tile {
  int64 group;       // whose network these rows go through
  int64 first;       // place of the first row: among the group's rows, or in `order`
  int present;       // number of rows, at most 8; none or fewer beyond the last tile
  int64 row_offset;  // of row 0 of the group, without an index
  const int64 *order;

  DDVI_INLINE bool has(int place) const { return place < present; }

  // The row at one of the eight places, counted over all groups; 0 if it is absent.
  DDVI_INLINE int64 row(int place) const {
    if (!has(place)) return 0;
    return order ? order[first + place] : row_offset + first + place;
  }
};

// The `tile`-th tile of rows sorted by group, where no tile has rows of two groups; without rows beyond the last.
DDVI_INLINE Tile indexed_tile(const int64 *order, const int64 *starts, int64 groups, int64 tile) {
  Tile found = {0, 0, 0, 0, order};
  int64 before = 0, start = starts[0];
  for (int64 group = 0; group < groups; ++group) {
    const int64 end = starts[group + 1], number = end > start ? end - start : 0, skipped = (tile - before) * kRows;
    if (skipped >= 0 && skipped < number) {
      found.group = group;
      found.first = start + skipped;
      found.present = number - skipped < kRows ? (int)(number - skipped) : kRows;
    }
    before += (number + kRows - 1) / kRows;
    start = end;
  }
  return found;
}

DDVI_INLINE Tile tile_of(const int64 *order, const int64 *starts, int64 groups, int64 rows, int64 tile, int64 group) {
#if DDVI_INDEXED
  return indexed_tile(order, starts, groups, tile);
#else
  const int64 left = rows - tile * kRows;
  return {group, tile * kRows, left < kRows ? (int)left : kRows, group * rows, nullptr};
#endif
}
