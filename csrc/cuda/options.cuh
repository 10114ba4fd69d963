// Macros that a variant of the chain's kernels is compiled with, and the constants that follow from them.
#pragma once

// Precision of the hidden products. BF16 and FP16 round their operands; FLOAT32 splits each into two fp16 numbers (split.cuh).
#define DDVI_BF16 0
#define DDVI_FP16 1
#define DDVI_FLOAT32 2

// Source of the noise.
#define DDVI_DETERMINISTIC 0  // none: the chain is deterministic
#define DDVI_GIVEN 1          // the parameter `noise`
#define DDVI_DRAWN 2          // Philox, from the parameter `state`

#ifndef DDVI_PRECISION
#error "define DDVI_PRECISION: 0 (bf16), 1 (fp16) or 2 (float32)"
#endif
#ifndef DDVI_D
#error "define DDVI_D: latent dimensions, 1 to 16"
#endif
#ifndef DDVI_C
#error "define DDVI_C: context columns, 0 to 16"
#endif
#ifndef DDVI_H
#error "define DDVI_H: hidden width, 64 or 128"  // the matrices of 256 do not fit into registers and shared memory beside the rest
#endif
#ifndef DDVI_NOISE
#error "define DDVI_NOISE: 0 (deterministic), 1 (given) or 2 (drawn)"
#endif
#ifndef DDVI_RESIDUAL
#define DDVI_RESIDUAL 1  // the first hidden layer is added to the third
#endif
#ifndef DDVI_INDEXED
#define DDVI_INDEXED 0  // rows have an index of their groups: `order` and `starts`
#endif
#ifndef DDVI_KEEP
#define DDVI_KEEP 1  // forward: write `trajectory`, `signs` and, if it is not null, `outputs`
#endif
#ifndef DDVI_PATH_GRADIENT
#define DDVI_PATH_GRADIENT 1  // backward: `d_path` is given
#endif
#ifndef DDVI_TRAJECTORY_GRADIENT
#define DDVI_TRAJECTORY_GRADIENT 0  // backward: `d_trajectory` is given
#endif
#ifndef DDVI_NOISE_GRADIENT
#define DDVI_NOISE_GRADIENT 0  // backward: write `d_noise`
#endif
#ifndef DDVI_COEFFICIENT_GRADIENT
#define DDVI_COEFFICIENT_GRADIENT 0  // backward: write `coefficient_sums`, from `outputs`
#endif

constexpr int kLatent = DDVI_D, kContext = DDVI_C, kInputs = kLatent + kContext, kHidden = DDVI_H;
constexpr int kRows = 8;               // rows of a program
constexpr int kWarps = kHidden / 16;   // a warp has 16 hidden units
constexpr int kThreads = 32 * kWarps;  // of a program
constexpr bool kSplit = DDVI_PRECISION == DDVI_FLOAT32;
constexpr bool kResidual = DDVI_RESIDUAL;

static_assert(kLatent >= 1 && kLatent <= 16, "DDVI_D is 1 to 16");
static_assert(kContext >= 0 && kContext <= 16, "DDVI_C is 0 to 16");
static_assert(kHidden == 64 || kHidden == 128, "DDVI_H is 64 or 128");
