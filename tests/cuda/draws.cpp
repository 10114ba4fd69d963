#include "emulation.h"

#include "../../csrc/cuda/rng.cuh"

// Words [count, 4], uniforms and normals of draws from `first` on, in one block and stream.
extern "C" void draws(uint64 first, uint32 block, uint32 stream, uint64 seed, int count, int64 *words, float *uniforms, float *normal) {
  for (int i = 0; i < count; ++i) {
    const Quad quad = philox(first + i, block, stream, seed);
    float values[4];
    normals(quad, values);
    for (int k = 0; k < 4; ++k) words[4 * i + k] = quad.word[k], uniforms[4 * i + k] = to_uniform(quad.word[k]), normal[4 * i + k] = values[k];
  }
}
