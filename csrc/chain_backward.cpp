#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "chain_arguments.h"
#include "threads.h"

#define DDVI_KERNEL_BF16
#define DDVI_KERNEL "chain_backward_kernel.h"
#include "each_isa.h"

// Gradients of all inputs from the upstream gradients of z, path and trajectory.
DDVI_EXPORT void ddvi_chain_backward(const ChainArguments* arguments) { DDVI_DISPATCH(chain_backward(*arguments, 0)) }

// The same for a chain with a context for each step, (T, R, C), whose gradient is the sum over the steps.
DDVI_EXPORT void ddvi_chain_backward_stepwise(const ChainArguments* arguments) {
  DDVI_DISPATCH(chain_backward(*arguments, arguments->rows * arguments->context_width))
}
