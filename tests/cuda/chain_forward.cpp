#include "emulation.h"

#include "../../csrc/cuda/chain_forward.cu"

extern "C" void emulate(int x, int y, unsigned seed, void **arguments) { emulated::launch(chain_forward, x, y, kThreads, seed, arguments); }
