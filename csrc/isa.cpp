#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace ddvi {
namespace {

Isa detect() {
#if DDVI_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
  if (avx2) return kAvx2;
#endif
  return kPortable;
}

}  // namespace

Isa isa() {
  static const Isa best = detect();
  const char* wanted = std::getenv("DDVI_FAST_ISA");
  if (wanted == nullptr) return best;
  if (!std::strcmp(wanted, "portable")) return kPortable;
  if (!std::strcmp(wanted, "avx2") && best > kAvx2) return kAvx2;
  if (!std::strcmp(wanted, "avx512") && best > kAvx512) return kAvx512;
  return best;
}

}  // namespace ddvi

// 0 portable, 1 AVX2 and FMA, 2 AVX-512, 3 AVX-512 with bf16 dot products.
DDVI_EXPORT int ddvi_isa() { return ddvi::isa(); }

// Increases whenever a signature or an argument structure changes: the loader refuses a library of another version.
DDVI_EXPORT int ddvi_abi_version() { return 8; }
