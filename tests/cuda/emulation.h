// The functions of csrc/cuda/instructions.cuh on the CPU, and a scheduler that runs the threads of one program after another as fibers.
//
// Only what instructions do is written here; all arithmetic of the kernels is their own. The 32 fibers of a warp run in turn up to the next
// instruction that involves the whole warp, where each leaves its operands for the others. A warp runs up to a barrier before another starts,
// so results change with the order of warps if a barrier is missing. Copies in the background happen when they are waited for, and shared
// memory is NaN at first.
#pragma once

#define DDVI_EMULATED

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>

typedef uint16_t uint16;
typedef uint32_t uint32;
typedef unsigned long long uint64;
typedef long long int64;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32 x, y, z, w; };
inline uint4 make_uint4(uint32 x, uint32 y, uint32 z, uint32 w) { return {x, y, z, w}; }

#define DDVI_INLINE inline
#define DDVI_SHARED(type, name) \
  auto &name = *(std::add_pointer_t<type>)emulated::memory; \
  static_assert(sizeof(type) <= emulated::kMemory, "too much static shared memory")
#define __global__
#define __launch_bounds__(...)

struct Dimensions { unsigned x, y; };
static Dimensions threadIdx, blockIdx, gridDim;

namespace emulated {

constexpr int kMostThreads = 256, kStack = 64 * 1024, kMemory = 48 * 1024, kDynamic = 192 * 1024;
alignas(128) static char memory[kMemory + kDynamic];

enum Stop { kRunning, kExchange, kMatrices, kProduct, kBarrier, kDone };

struct Copy { void *to; const void *from; };

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started;
  Stop stop;
  Copy copies[8];
  int pending;
};

static Fiber fibers[kMostThreads];
static char stacks[kMostThreads][kStack];
static jmp_buf scheduler;
static void (*body)();
static int threads;

// What the lanes of each warp bring to an instruction. A lane may already bring to the next one, so there are two.
struct Brought {
  uint32 value[32];
  double a[16][16], b[16][8], product[16][8];  // factors of a product, which the first lane to go on makes
  bool made;
};
static Brought brought[kMostThreads / 32][2];
static int turn[kMostThreads];

inline void fail(const char *what) { std::fprintf(stderr, "emulation: %s\n", what), std::abort(); }

inline Brought &here() { return brought[threadIdx.x / 32][turn[threadIdx.x] & 1]; }

// Returns when all lanes of the warp (all threads for a barrier) have come here.
inline void wait(Stop stop) {
  Fiber &fiber = fibers[threadIdx.x];
  fiber.stop = stop;
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

inline Brought &meet(Stop stop) {
  Brought &all = here();
  wait(stop);
  ++turn[threadIdx.x];
  return all;
}

inline void start() {
  body();
  fibers[threadIdx.x].stop = kDone;
  _longjmp(scheduler, 1);
}

inline void resume(int thread) {
  Fiber &fiber = fibers[thread];
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks[thread];
  fiber.context.uc_stack.ss_size = kStack;
  makecontext(&fiber.context, start, 0);
  setcontext(&fiber.context);
}

inline void run_warp(int warp) {
  Stop stop;
  do {
    for (int lane = 0; lane < 32; ++lane) resume(32 * warp + lane);
    stop = fibers[32 * warp].stop;
    for (int lane = 1; lane < 32; ++lane)
      if (fibers[32 * warp + lane].stop != stop) fail("lanes of a warp are at different instructions");
  } while (stop != kBarrier && stop != kDone);
}

inline void run_program(unsigned seed) {
  std::memset(memory, 0xFF, sizeof memory);
  for (int thread = 0; thread < threads; ++thread) fibers[thread].started = false, fibers[thread].pending = 0, turn[thread] = 0;
  const int warps = threads / 32;
  for (bool done = false; !done; seed = seed * 1664525u + 1013904223u) {
    for (int i = 0; i < warps; ++i) run_warp((int)((i * (2 * (seed >> 8 & 3) + 1) + (seed >> 16)) % warps));  // an odd factor permutes
    const Stop stop = fibers[0].stop;
    for (int warp = 1; warp < warps; ++warp)
      if (fibers[32 * warp].stop != stop) fail("a barrier is not reached by all warps");
    done = stop == kDone;
  }
}

template <class... Parameters>
struct Call {
  static void (*kernel)(Parameters...);
  static void **arguments;
  template <size_t... i>
  static void call(std::index_sequence<i...>) { kernel(*(Parameters *)arguments[i]...); }
  static void run() { call(std::index_sequence_for<Parameters...>()); }
};
template <class... Parameters> void (*Call<Parameters...>::kernel)(Parameters...);
template <class... Parameters> void **Call<Parameters...>::arguments;

// Runs a grid of programs; `arguments` points to each argument, as for the driver's cuLaunchKernel. `seed` chooses the order of warps.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int x, int y, int threads_, unsigned seed, void **arguments) {
  Call<Parameters...>::kernel = kernel;
  Call<Parameters...>::arguments = arguments;
  body = Call<Parameters...>::run;
  threads = threads_;
  gridDim = {(unsigned)x, (unsigned)y};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_program(seed + blockIdx.x);
}

inline float from_bits(uint32 bits) { float x; std::memcpy(&x, &bits, 4); return x; }

inline uint32 to_bits(float x) { uint32 bits; std::memcpy(&bits, &x, 4); return bits; }

inline float half_to_float(uint32 half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
  return half >> 15 ? -size : size;
}

struct Halves {
  float value[65536];
  Halves() { for (uint32 i = 0; i < 65536; ++i) value[i] = half_to_float(i); }
};
static const Halves halves;

// To the nearest, ties to even.
inline uint32 float_to_half(float x) {
  const uint32 sign = to_bits(x) >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (std::isnan(x)) return sign | 0x7E00;
  if (size >= 65520.0f) return sign | 0x7C00;
  if (size < 0x1p-14f) return sign | (uint32)std::nearbyint(size * 0x1p24f);
  const uint32 bits = to_bits(size);
  return sign | ((bits + 0xFFF + (bits >> 13 & 1)) >> 13) - (112 << 10);
}

inline uint32 float_to_bf16(float x) {
  const uint32 bits = to_bits(x);
  return std::isnan(x) ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

#if !defined(DDVI_PRECISION) || DDVI_PRECISION == 0
inline float widened(uint32 word) { return from_bits(word << 16); }
inline uint32 narrowed(float x) { return float_to_bf16(x); }
#else
inline float widened(uint32 word) { return halves.value[word & 0xFFFF]; }
inline uint32 narrowed(float x) { return float_to_half(x); }
#endif

// Tensor cores drop what does not fit.
inline float truncated(double x) {
  const float nearest = (float)x;
  return std::isfinite(nearest) && std::fabs((double)nearest) > std::fabs(x) ? std::nextafterf(nearest, 0.0f) : nearest;
}

inline void multiply(Brought &x) {
  for (int row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sums[column] += x.a[row][k] * x.b[k][column];
    std::memcpy(x.product[row], sums, sizeof sums);
  }
  x.made = true;
}

inline char *at(uint32 address, uint32 size) {
  if (address + size > sizeof memory || address % size) fail("address outside shared memory or not aligned");
  return memory + address;
}

}  // namespace emulated

static uint4 *const dynamic_shared = (uint4 *)(emulated::memory + emulated::kMemory);

inline uint32 pack(float low, float high) { return emulated::narrowed(low) | emulated::narrowed(high) << 16; }

inline void unpack(uint32 pair, float &low, float &high) { low = emulated::halves.value[pair & 0xFFFF], high = emulated::halves.value[pair >> 16]; }

inline void multiply_add(float (&sum)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  emulated::Brought &mine = emulated::here();
  for (int e = 0; e < 2; ++e) {
    for (int i = 0; i < 4; ++i) mine.a[g + 8 * (i % 2)][2 * t + e + 8 * (i / 2)] = emulated::widened(a[i] >> 16 * e & 0xFFFF);
    mine.b[2 * t + e][g] = emulated::widened(b0 >> 16 * e & 0xFFFF);
    mine.b[2 * t + e + 8][g] = emulated::widened(b1 >> 16 * e & 0xFFFF);
  }
  mine.made = false;
  emulated::Brought &all = emulated::meet(emulated::kProduct);
  if (!all.made) emulated::multiply(all);
  for (int i = 0; i < 4; ++i) sum[i] = emulated::truncated(sum[i] + all.product[g + 8 * (i / 2)][2 * t + i % 2]);
}

inline uint32 shared_address(const void *pointer) { return (uint32)((const char *)pointer - emulated::memory); }

inline void load_transposed(uint32 (&out)[4], uint32 address) {
  const int lane = threadIdx.x % 32;
  emulated::here().value[lane] = address;
  const emulated::Brought &all = emulated::meet(emulated::kMatrices);
  for (int m = 0; m < 4; ++m) {
    uint16 pair[2];
    for (int e = 0; e < 2; ++e) std::memcpy(pair + e, emulated::at(all.value[8 * m + 2 * (lane % 4) + e], 16) + 2 * (lane / 4), 2);
    out[m] = pair[0] | (uint32)pair[1] << 16;
  }
}

inline void store_shared(uint32 address, uint32 value) { std::memcpy(emulated::at(address, 4), &value, 4); }

inline void copy_later(void *shared, const void *global) {
  emulated::Fiber &fiber = emulated::fibers[threadIdx.x];
  if (fiber.pending == 8 || (uintptr_t)global % 16) emulated::fail("too many copies, or one from an address that is not aligned");
  fiber.copies[fiber.pending++] = {emulated::at(shared_address(shared), 16), global};
}

inline void wait_for_copies() {
  emulated::Fiber &fiber = emulated::fibers[threadIdx.x];
  for (int i = 0; i < fiber.pending; ++i) std::memcpy(fiber.copies[i].to, fiber.copies[i].from, 16);
  fiber.pending = 0;
}

inline float relu(float x) { return x <= 0.0f ? 0.0f : x; }

inline float square_root(float x) { return std::sqrt(x); }

inline float reciprocal(float x) { return 1.0f / x; }

inline uint32 high_product(uint32 a, uint32 b) { return (uint32)((uint64)a * b >> 32); }

inline int float_bits(float x) { return (int)emulated::to_bits(x); }

inline float bits_float(int x) { return emulated::from_bits((uint32)x); }

inline uint32 exchanged(uint32 value, int lane) {
  emulated::here().value[threadIdx.x % 32] = value;
  return emulated::meet(emulated::kExchange).value[lane & 31];
}

inline float from_lane(float value, int lane) { return emulated::from_bits(exchanged(emulated::to_bits(value), lane)); }

inline float exchange(float value, int mask) { return from_lane(value, threadIdx.x % 32 ^ mask); }

inline uint32 exchange(uint32 value, int mask) { return exchanged(value, threadIdx.x % 32 ^ mask); }

inline void barrier() { emulated::wait(emulated::kBarrier); }
