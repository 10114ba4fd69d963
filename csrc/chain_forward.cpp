#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "chain_arguments.h"
#include "threads.h"

#define DDVI_KERNEL_BF16
#define DDVI_KERNEL "chain_forward_kernel.h"
#include "each_isa.h"

// Runs all steps from `start` down to `z`.
DDVI_EXPORT void ddvi_chain_forward(const ChainArguments* arguments) { DDVI_DISPATCH(chain_forward(*arguments)) }
