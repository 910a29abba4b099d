// Memory for trying engines. See plan.h.
#pragma once
#include "convolution/cudnn/plan.h"

namespace jea {

// Numbers whose exponents are fixed and whose mantissas differ, one in 32 bits or two.
__global__ void fill_words(unsigned* words, int64_t count, unsigned exponent, unsigned mantissa) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
         i += gridDim.x * static_cast<int64_t>(blockDim.x))
        words[i] = exponent | ((static_cast<unsigned>(i) * 2654435761u >> 7 ^ static_cast<unsigned>(i)) & mantissa);
}

inline void fill_with_numbers(void* memory, int64_t bytes, cudnnDataType_t type) {
    const bool single = type == CUDNN_DATA_FLOAT, half = type == CUDNN_DATA_HALF;
    fill_words<<<256, 256>>>(static_cast<unsigned*>(memory), bytes / 4, single ? 0x3f000000u : half ? 0x38003800u : 0x3f003f00u,
                             single ? 0x007fffffu : half ? 0x03ff03ffu : 0x007f007fu);
}

}  // namespace jea
