#include <algorithm>
#include <cstdint>
#include <cstring>

#include "decoder_arguments.h"
#include "draws.h"
#include "threads.h"

#define DDVI_KERNEL "decoder_kernel.h"
#include "each_isa.h"

// Gradient of log p(x | z) for z, where the likelihood's parameters are the output of a multilayer perceptron.
DDVI_EXPORT void ddvi_likelihood_gradient(const DecoderArguments* arguments) { DDVI_DISPATCH(decoder_gradient(*arguments)) }
