// What follows a matrix product (rows, columns): bias, then GELU or a summand; and the gradient, on CUDA. See
// linear.py.
//
// A block works on kColumns columns, a thread on every (kThreads / kColumns)-th row of one. The gradient of the bias is
// summed over splits of the rows, then over the splits. No atomics.
#pragma once
#include <cuda_runtime.h>
#include "common/columns.cuh"
#include "common/reduce.cuh"

namespace jea {

struct LinearEpilogue {
    long rows, columns;
    bool gelu;
    long splits;  // of the rows, in the gradient
};

constexpr int kColumns = 32, kRowsOfBlock = 32;

// y = product + bias? + summand?, or gelu(product + bias?), with gelu(h) = h Phi(h)
template <class T>
__global__ void __launch_bounds__(kThreads)
linear_apply(LinearEpilogue d, const T* __restrict__ product, const T* __restrict__ bias, const T* __restrict__ summand,
             T* __restrict__ y) {
    const long column = static_cast<long>(blockIdx.y) * kColumns + threadIdx.x;
    if (column >= d.columns) return;
    const long first = static_cast<long>(blockIdx.x) * kRowsOfBlock, last = min(first + kRowsOfBlock, d.rows);
    const float offset = bias ? static_cast<float>(bias[column]) : 0.f;
    for (long r = first + threadIdx.y; r < last; r += blockDim.y) {
        const long at = r * d.columns + column;
        float value = static_cast<float>(product[at]) + offset;
        if (d.gelu) value *= normcdff(value);
        if (summand) value += static_cast<float>(summand[at]);
        y[at] = static_cast<T>(value);
    }
}

// The gradient of the product, unless null, and partial (splits, columns), unless null: its sums over a split of the
// rows. With GELU it is dy (Phi(h) + h phi(h)), h = product + bias?, else dy.
template <class T>
__global__ void __launch_bounds__(kThreads)
linear_gradient(LinearEpilogue d, const T* __restrict__ product, const T* __restrict__ bias, const T* __restrict__ dy,
                T* __restrict__ dproduct, float* __restrict__ partial) {
    __shared__ float sums[kThreads / kColumns][kColumns];
    const long column = static_cast<long>(blockIdx.y) * kColumns + threadIdx.x;
    const long each = (d.rows + d.splits - 1) / d.splits, first = blockIdx.x * each, last = min(first + each, d.rows);
    const float offset = bias && column < d.columns ? static_cast<float>(bias[column]) : 0.f;
    float sum = 0.f;
    for (long r = first + threadIdx.y; r < last && column < d.columns; r += blockDim.y) {
        const long at = r * d.columns + column;
        float g = static_cast<float>(dy[at]);
        if (d.gelu) {
            const float h = static_cast<float>(product[at]) + offset;
            g *= normcdff(h) + 0.39894228f * h * expf(-0.5f * h * h);
            dproduct[at] = static_cast<T>(g);
        }
        sum += g;
    }
    if (!partial) return;
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= d.columns) return;
    for (int i = 1; i < kThreads / kColumns; i++) sum += sums[i][threadIdx.x];
    partial[blockIdx.x * d.columns + column] = sum;
}

inline unsigned blocks_of_columns(const LinearEpilogue& d) { return blocks_of(d.columns, kColumns); }

// bias and summand may be null.
template <class T>
void linear_forward(const LinearEpilogue& d, const T* product, const T* bias, const T* summand, T* y) {
    const dim3 blocks(blocks_of(d.rows, kRowsOfBlock), blocks_of_columns(d)), block(kColumns, kThreads / kColumns);
    linear_apply<<<blocks, block>>>(d, product, bias, summand, y);
}

// Without GELU nothing is written to dproduct: it is dy. Without a bias, bias is null and nothing is written to dbias.
// workspace: splits columns floats
template <class T>
void linear_backward(const LinearEpilogue& d, const T* product, const T* bias, const T* dy, T* dproduct, T* dbias,
                     float* workspace) {
    float* const partial = bias ? workspace : nullptr;
    const dim3 blocks(static_cast<unsigned>(d.splits), blocks_of_columns(d)), block(kColumns, kThreads / kColumns);
    linear_gradient<<<blocks, block>>>(d, product, bias, dy, dproduct, partial);
    if (bias) sum_over_splits<T>(d.columns, d.splits, partial, d.columns, dbias, nullptr);
}

}  // namespace jea
