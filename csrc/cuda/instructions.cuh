// Instructions of the GPU that C++ has no operator for: inline PTX and warp intrinsics, and nothing of the chain's own arithmetic.
// tests/cuda/emulation.h has the same functions for host threads. No header of the toolkit is needed, since NVRTC comes without them.
#pragma once

#include "options.cuh"

#ifndef DDVI_EMULATED

typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

#define DDVI_INLINE __device__ __forceinline__

// Two floats rounded to bf16 or fp16, the first in the low half.
DDVI_INLINE uint32 pack(float low, float high) {
  uint32 pair;
#if DDVI_PRECISION == DDVI_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}

// The two floats of a pair of fp16.
DDVI_INLINE void unpack(uint32 pair, float &low, float &high) {
  asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(low), "=f"(high) : "r"(pair));
}

// sum += a b for a [16, 16] and b [16, 8]. Lane 4 g + t has sums of rows g (entries 0, 1) and g + 8 (2, 3), columns 2 t and 2 t + 1.
DDVI_INLINE void multiply_add(float (&sum)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
#if DDVI_PRECISION == DDVI_BF16
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DDVI_INLINE uint32 shared_address(const void *pointer) {
  uint32 address;
  asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(pointer));
  return address;
}

// Four 8 x 8 matrices of 16-bit numbers, transposed; lane 8 m + i gives the address of row i of matrix m.
DDVI_INLINE void load_transposed(uint32 (&out)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

DDVI_INLINE void store_shared(uint32 address, uint32 value) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory"); }

// Copies 16 bytes to shared memory in the background, until `wait_for_copies`.
DDVI_INLINE void copy_later(void *shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}

DDVI_INLINE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// max(x, 0), NaN for NaN.
DDVI_INLINE float relu(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

DDVI_INLINE float square_root(float x) {
  float result;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

DDVI_INLINE float reciprocal(float x) {
  float result;
  asm("rcp.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

DDVI_INLINE uint32 high_product(uint32 a, uint32 b) { return __umulhi(a, b); }

DDVI_INLINE int float_bits(float x) { return __float_as_int(x); }

DDVI_INLINE float bits_float(int x) { return __int_as_float(x); }

// The value of another lane of the warp.
DDVI_INLINE float from_lane(float value, int lane) { return __shfl_sync(~0u, value, lane); }

DDVI_INLINE float exchange(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

DDVI_INLINE uint32 exchange(uint32 value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

DDVI_INLINE void barrier() { __syncthreads(); }

// Shared memory of a program, in its function.
#define DDVI_SHARED(type, name) __shared__ type name

// The dynamic shared memory of a program.
extern __shared__ uint4 dynamic_shared[];

#endif
