// Sums over the threads of a block, in a fixed order: the same input gives the same bits.
#pragma once
#include <cuda_runtime.h>

namespace jea {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

inline unsigned blocks_of(long count, long each) { return static_cast<unsigned>((count + each - 1) / each); }

// Over a warp; the same value in all of its lanes.
__device__ inline float sum_of_warp(float value) {
    for (int width = 16; width > 0; width /= 2) value += __shfl_xor_sync(kAllLanes, value, width);
    return value;
}

// Joins the values of a block of kThreads, by T::add; the result in all threads.
template <class T>
__device__ T joined(T value) {
    __shared__ T values[kThreads];
    __syncthreads();
    values[threadIdx.x] = value;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x].add(values[threadIdx.x + half]);
    }
    __syncthreads();
    return values[0];
}

}  // namespace jea
