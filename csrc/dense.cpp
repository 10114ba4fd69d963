#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dense_arguments.h"
#include "threads.h"

#define DDVI_KERNEL_BF16
#define DDVI_KERNEL "dense_kernel.h"
#include "each_isa.h"

// A layer's product, bias, activation and dropout.
DDVI_EXPORT void ddvi_dense_forward(const DenseArguments* arguments) { DDVI_DISPATCH(dense_forward(*arguments)) }

// From the upstream gradient of its output to those of its input, weight and bias.
DDVI_EXPORT void ddvi_dense_backward(const DenseArguments* arguments) { DDVI_DISPATCH(dense_backward(*arguments)) }
