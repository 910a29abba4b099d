// Sums over the splits of a matrix of partial sums, on CUDA.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

// partial (splits, columns) -> its sum over the splits, in float64: those of the first `half` columns to `first`, the
// others to `second`. A block of 32 columns x kThreads / 32 parts of the splits, so that no thread reads them all.
template <class T>
__global__ void __launch_bounds__(kThreads)
join_columns(long columns, long splits, const float* __restrict__ partial, long half, T* __restrict__ first,
             T* __restrict__ second) {
    __shared__ double sums[kThreads / 32][32];
    const long column = static_cast<long>(blockIdx.x) * 32 + threadIdx.x;
    double sum = 0.;
    #pragma unroll 8
    for (long i = threadIdx.y; i < splits; i += kThreads / 32) sum += column < columns ? partial[i * columns + column] : 0.f;
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int i = 1; i < kThreads / 32; i++) sum += sums[i][threadIdx.x];
    T* const to = column < half ? first + column : second + column - half;
    *to = static_cast<T>(static_cast<float>(sum));
}

template <class T>
void sum_over_splits(long columns, long splits, const float* partial, long half, T* first, T* second) {
    join_columns<T><<<blocks_of(columns, 32), dim3(32, kThreads / 32)>>>(columns, splits, partial, half, first, second);
}

}  // namespace jea
