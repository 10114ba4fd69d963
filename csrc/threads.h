// Parallel loops, and scratch memory of each thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>

namespace ddvi {

// Runs `body(item)` for every item in [0, items). A thread takes the next item when it is free, so `body` must write
// only data of its item: then the result depends neither on the number of threads nor on their speed.
void parallel_for(int64_t threads, int64_t items, const std::function<void(int64_t)>& body);

// Scratch floats of the calling thread, 64-byte aligned, uninitialized. It lives as long as the thread: new memory from
// the system would cost a page fault every 4 KiB in every call. Each purpose has its own slot.
enum Slot { kTileSlot, kPackSlot, kPartialSlot, kSlots };
float* scratch(Slot slot, size_t floats);

}  // namespace ddvi
