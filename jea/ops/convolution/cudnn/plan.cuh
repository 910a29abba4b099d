// Kernels beside cuDNN's: numbers for trying engines, weights in its order. See plan.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "common/reduce.cuh"
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

// (O, I, K) -> (O, K, I), or back. Reads and writes of a warp lie side by side in I; the K taps of a thread come from one or two
// lines of the cache.
template <bool kToChannelsLast, class From, class To>
__global__ void __launch_bounds__(kThreads)
reorder(const From* __restrict__ from, To* __restrict__ to, int64_t out_channels, int64_t channels, int64_t taps) {
    const int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
    if (at >= out_channels * channels) return;
    const int64_t o = at / channels, i = at - o * channels;
    for (int64_t k = 0; k < taps; k++) {
        const int64_t plain = at * taps + k, last = (o * taps + k) * channels + i;
        if (kToChannelsLast) to[last] = static_cast<To>(static_cast<float>(from[plain]));
        else to[plain] = static_cast<To>(static_cast<float>(from[last]));
    }
}

template <class From, class To>
void reorder_either_way(bool to_channels_last, const void* from, void* to, int64_t out_channels, int64_t channels,
                        int64_t taps) {
    const auto* source = static_cast<const From*>(from);
    auto* target = static_cast<To*>(to);
    const unsigned blocks = blocks_of(out_channels * channels, kThreads);
    if (to_channels_last) reorder<true, From, To><<<blocks, kThreads>>>(source, target, out_channels, channels, taps);
    else reorder<false, From, To><<<blocks, kThreads>>>(source, target, out_channels, channels, taps);
}

template <class From>
void reorder_to(bool to_channels_last, const void* from, void* to, cudnnDataType_t type, int64_t out_channels,
                int64_t channels, int64_t taps) {
    switch (type) {
        case CUDNN_DATA_HALF: return reorder_either_way<From, __half>(to_channels_last, from, to, out_channels, channels, taps);
        case CUDNN_DATA_BFLOAT16:
            return reorder_either_way<From, __nv_bfloat16>(to_channels_last, from, to, out_channels, channels, taps);
        default: return reorder_either_way<From, float>(to_channels_last, from, to, out_channels, channels, taps);
    }
}

inline void reorder_weight(bool to_channels_last, const void* from, cudnnDataType_t from_type, void* to,
                           cudnnDataType_t to_type, int64_t out_channels, int64_t channels, int64_t taps) {
    switch (from_type) {
        case CUDNN_DATA_HALF: return reorder_to<__half>(to_channels_last, from, to, to_type, out_channels, channels, taps);
        case CUDNN_DATA_BFLOAT16:
            return reorder_to<__nv_bfloat16>(to_channels_last, from, to, to_type, out_channels, channels, taps);
        default: return reorder_to<float>(to_channels_last, from, to, to_type, out_channels, channels, taps);
    }
}

}  // namespace jea
