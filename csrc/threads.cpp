#include "threads.h"

#include <algorithm>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace ddvi {
namespace {

struct Job {
  const std::function<void(int64_t)>* body;
  int64_t items;
  std::atomic<int64_t> next{0};
};

void work(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  for (int64_t item; (item = job.next.fetch_add(1, std::memory_order_relaxed)) < job.items;) (*job.body)(item);
}

// The entry point of the OpenMP runtime that torch has loaded. Its threads are shared, because they spin for a while after a
// torch operation, and a second pool would compete with them for the cores.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

Parallel openmp() {
#if defined(__linux__)
  static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#else
  return nullptr;
#endif
}

struct Block {
  float* data = nullptr;
  size_t size = 0;
  ~Block() { std::free(data); }
};

}  // namespace

void parallel_for(int64_t threads, int64_t items, const std::function<void(int64_t)>& body) {
  threads = std::min(threads, items);
  Job job{&body, items};
  if (threads <= 1) return work(&job);
  if (Parallel parallel = openmp()) return parallel(work, &job, (unsigned)threads, 0);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; ++i) others.emplace_back(work, &job);
  work(&job);
  for (std::thread& other : others) other.join();
}

float* scratch(Slot slot, size_t floats) {
  static thread_local Block blocks[kSlots];
  Block& block = blocks[slot];
  if (block.size < floats) {
    std::free(block.data);
    block.size = (floats + 1023) / 1024 * 1024;
    block.data = static_cast<float*>(std::aligned_alloc(4096, block.size * sizeof(float)));
  }
  return block.data;
}

}  // namespace ddvi
