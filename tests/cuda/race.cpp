#include "emulation.h"

// Each thread reads what its counterpart in another warp wrote, after a barrier or without one.
static void swap(int *out, int with_barrier) {
  DDVI_SHARED(int[64], shared);
  shared[threadIdx.x] = (int)threadIdx.x;
  if (with_barrier) barrier();
  out[threadIdx.x] = shared[threadIdx.x ^ 32];
  barrier();
}

extern "C" void emulate(int x, int y, unsigned seed, void **arguments) { emulated::launch(swap, x, y, 64, seed, arguments); }
