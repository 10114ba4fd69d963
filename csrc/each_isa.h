// Compiles the header named by DDVI_KERNEL once per instruction set, each in its own namespace.
//
// The outer namespaces are unnamed, so that two translation units never share a symbol: the linker may keep only one copy of an
// inline function, and must not keep the AVX-512 one for a processor without it. The bf16 variant is compiled only where a
// kernel asks for it with DDVI_KERNEL_BF16.
#include "isa.h"

#if defined(__clang__)
#define DDVI_PRAGMA(text) _Pragma(#text)
#define DDVI_TARGET_BEGIN(features) DDVI_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define DDVI_TARGET_END _Pragma("clang attribute pop")
#else
#define DDVI_PRAGMA(text) _Pragma(#text)
#define DDVI_TARGET_BEGIN(features) _Pragma("GCC push_options") DDVI_PRAGMA(GCC target(features))
#define DDVI_TARGET_END _Pragma("GCC pop_options")
#endif

#define DDVI_LEVEL 0
#define DDVI_LANES 4
namespace { namespace portable {
#include DDVI_KERNEL
} }
#undef DDVI_LEVEL
#undef DDVI_LANES

#if DDVI_X86

#define DDVI_LEVEL 1
#define DDVI_LANES 8
DDVI_TARGET_BEGIN("avx2,fma")
namespace { namespace avx2 {
#include DDVI_KERNEL
} }
DDVI_TARGET_END
#undef DDVI_LEVEL
#undef DDVI_LANES

#define DDVI_LEVEL 2
#define DDVI_LANES 16
DDVI_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace { namespace avx512 {
#include DDVI_KERNEL
} }
DDVI_TARGET_END
#undef DDVI_LEVEL

#ifdef DDVI_KERNEL_BF16
#define DDVI_LEVEL 3
DDVI_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
namespace { namespace avx512bf16 {
#include DDVI_KERNEL
} }
DDVI_TARGET_END
#undef DDVI_LEVEL
#endif
#undef DDVI_LANES

#endif

// Runs `call` (an expression) in the namespace of the instruction set in force.
#if !DDVI_X86
#define DDVI_DISPATCH(call) portable::call;
#elif defined(DDVI_KERNEL_BF16)
#define DDVI_DISPATCH(call)                                    \
  switch (ddvi::isa()) {                                       \
    case ddvi::kAvx512Bf16: avx512bf16::call; break;           \
    case ddvi::kAvx512: avx512::call; break;                   \
    case ddvi::kAvx2: avx2::call; break;                       \
    default: portable::call;                                   \
  }
#else
#define DDVI_DISPATCH(call)                                    \
  switch (ddvi::isa()) {                                       \
    case ddvi::kAvx512Bf16:                                    \
    case ddvi::kAvx512: avx512::call; break;                   \
    case ddvi::kAvx2: avx2::call; break;                       \
    default: portable::call;                                   \
  }
#endif
