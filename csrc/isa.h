// Instruction set of the kernels: chosen at run time, lowered on request by DDVI_FAST_ISA.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DDVI_X86 1
#include <immintrin.h>
#else
#define DDVI_X86 0
#endif

#define DDVI_INLINE inline __attribute__((always_inline))
// Closures of the inner loops must not become calls.
#define DDVI_INLINE_CLOSURE __attribute__((always_inline))
#define DDVI_EXPORT extern "C" __attribute__((visibility("default")))

namespace ddvi {

enum Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best set that the processor has, at most what DDVI_FAST_ISA (portable, avx2, avx512) names.
// The environment is read at every call, so that one process can compare the paths.
Isa isa();

}  // namespace ddvi
