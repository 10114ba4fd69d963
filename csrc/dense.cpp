#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dense_arguments.h"
#include "threads.h"

#define DDVI_KERNEL_BF16
#define DDVI_KERNEL "dense_kernel.h"
#include "each_isa.h"

// Product, bias, activation and dropout of a layer.
DDVI_EXPORT void ddvi_dense_forward(const DenseArguments* arguments) { DDVI_DISPATCH(dense_forward(*arguments)) }

// Gradients of input, weight and bias from the upstream gradient of the output.
DDVI_EXPORT void ddvi_dense_backward(const DenseArguments* arguments) { DDVI_DISPATCH(dense_backward(*arguments)) }
