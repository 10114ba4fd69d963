#include "emulation.h"

#include "../../csrc/cuda/chain_backward.cu"

extern "C" void emulate(int x, int y, unsigned seed, void **arguments) { emulated::launch(chain_backward, x, y, kThreads, seed, arguments); }
