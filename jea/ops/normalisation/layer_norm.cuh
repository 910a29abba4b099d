// LayerNorm over rows of `width` values, and its gradient, on CUDA. See layer_norm.py.
//
// A warp works on a row, which stays in the cache between its sums: x is read once and y written once. The gradients
// of weight and bias are sums over splits of the rows, then over the splits. No atomics.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

struct LayerNorm {
    long rows, width;
    double eps;
    long splits;  // of the rows
};

// A row's mean as float32 and the part of it that float32 does not hold, and 1 / sqrt(variance + eps).
struct LayerNormRow {
    float mean, rest, inverse;
};

__global__ void __launch_bounds__(kThreads)
layer_norm_rows(LayerNorm d, const float* __restrict__ x, const float* __restrict__ weight,
                const float* __restrict__ bias, float* __restrict__ y, LayerNormRow* __restrict__ rows) {
    const long r = static_cast<long>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (r >= d.rows) return;
    const float* in = x + r * d.width;
    const int lane = threadIdx.x % 32;
    const float pivot = in[0], width = static_cast<float>(d.width);
    float sum = 0.f;
    for (long i = lane; i < d.width; i += 32) sum += in[i] - pivot;
    const float mean = pivot + __fdiv_rn(sum_of_warp(sum), width);
    // Two passes: the squares are of differences from the mean.
    sum = 0.f;
    float squares = 0.f;
    for (long i = lane; i < d.width; i += 32) {
        const float apart = in[i] - mean;
        sum += apart;
        squares += apart * apart;
    }
    const float rest = __fdiv_rn(sum_of_warp(sum), width);
    const double variance = __fdiv_rn(sum_of_warp(squares), width) - static_cast<double>(rest) * rest;
    const float inverse = static_cast<float>(1. / sqrt((variance < 0. ? 0. : variance) + d.eps));
    for (long i = lane; i < d.width; i += 32)
        y[r * d.width + i] = (in[i] - mean - rest) * inverse * weight[i] + bias[i];
    if (lane == 0) rows[r] = LayerNormRow{mean, rest, inverse};
}

// With h = (x - mean) / sqrt(variance + eps) and g = dy weight: dx = (g - mean(g) - h mean(g h)) / sqrt(variance + eps)
__global__ void __launch_bounds__(kThreads)
layer_norm_gradient_rows(LayerNorm d, const float* __restrict__ x, const float* __restrict__ weight,
                         const LayerNormRow* __restrict__ rows, const float* __restrict__ dy, float* __restrict__ dx) {
    const long r = static_cast<long>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (r >= d.rows) return;
    const float *in = x + r * d.width, *grad = dy + r * d.width;
    const int lane = threadIdx.x % 32;
    const LayerNormRow row = rows[r];
    float sum = 0.f, product = 0.f;
    for (long i = lane; i < d.width; i += 32) {
        const float g = grad[i] * weight[i];
        sum += g;
        product += g * ((in[i] - row.mean - row.rest) * row.inverse);
    }
    const float offset = __fdiv_rn(sum_of_warp(sum), static_cast<float>(d.width));
    const float slope = __fdiv_rn(sum_of_warp(product), static_cast<float>(d.width));
    for (long i = lane; i < d.width; i += 32) {
        const float h = (in[i] - row.mean - row.rest) * row.inverse;
        dx[r * d.width + i] = row.inverse * (grad[i] * weight[i] - offset - h * slope);
    }
}

constexpr int kColumns = 32;  // of a block of kColumns x kThreads / kColumns threads

// partial (splits, 2, width): sums of dy h and of dy over a split of the rows, for kColumns columns a block.
__global__ void __launch_bounds__(kThreads)
layer_norm_gradient_columns(LayerNorm d, const float* __restrict__ x, const LayerNormRow* __restrict__ rows,
                            const float* __restrict__ dy, float* __restrict__ partial) {
    __shared__ float sums[2][kThreads / kColumns][kColumns];
    const long column = static_cast<long>(blockIdx.y) * kColumns + threadIdx.x;
    const long each = (d.rows + d.splits - 1) / d.splits, first = blockIdx.x * each, last = min(first + each, d.rows);
    float weight_sum = 0.f, bias_sum = 0.f;
    for (long r = first + threadIdx.y; r < last && column < d.width; r += blockDim.y) {
        const LayerNormRow row = rows[r];
        const float g = dy[r * d.width + column];
        weight_sum += g * ((x[r * d.width + column] - row.mean - row.rest) * row.inverse);
        bias_sum += g;
    }
    sums[0][threadIdx.y][threadIdx.x] = weight_sum;
    sums[1][threadIdx.y][threadIdx.x] = bias_sum;
    __syncthreads();
    if (threadIdx.y > 1 || column >= d.width) return;
    float sum = 0.f;
    for (int i = 0; i < kThreads / kColumns; i++) sum += sums[threadIdx.y][i][threadIdx.x];
    partial[(blockIdx.x * 2 + threadIdx.y) * d.width + column] = sum;
}

__global__ void layer_norm_join(LayerNorm d, const float* __restrict__ partial, float* __restrict__ dweight,
                                float* __restrict__ dbias) {
    const long column = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (column >= d.width) return;
    double weight_sum = 0., bias_sum = 0.;
    for (long split = 0; split < d.splits; split++) {
        weight_sum += partial[split * 2 * d.width + column];
        bias_sum += partial[(split * 2 + 1) * d.width + column];
    }
    dweight[column] = static_cast<float>(weight_sum);
    dbias[column] = static_cast<float>(bias_sum);
}

inline void layer_norm_forward(const LayerNorm& d, const float* x, const float* weight, const float* bias, float* y,
                               float* rows) {
    layer_norm_rows<<<blocks_of(d.rows, kThreads / 32), kThreads>>>(d, x, weight, bias, y,
                                                                    reinterpret_cast<LayerNormRow*>(rows));
}

// workspace: 2 splits width floats
inline void layer_norm_backward(const LayerNorm& d, const float* x, const float* weight, const float* rows,
                                const float* dy, float* dx, float* dweight, float* dbias, float* workspace) {
    const LayerNormRow* const statistics = reinterpret_cast<const LayerNormRow*>(rows);
    layer_norm_gradient_rows<<<blocks_of(d.rows, kThreads / 32), kThreads>>>(d, x, weight, statistics, dy, dx);
    layer_norm_gradient_columns<<<dim3(static_cast<unsigned>(d.splits), blocks_of(d.width, kColumns)),
                                  dim3(kColumns, kThreads / kColumns)>>>(d, x, statistics, dy, workspace);
    layer_norm_join<<<blocks_of(d.width, kThreads), kThreads>>>(d, workspace, dweight, dbias);
}

}  // namespace jea
