// LayerNorm over rows of `width` values, and its gradient, on CUDA. See layer_norm.py.
//
// A warp works on a row, which it holds in registers: x is read once and y written once. Backward too: x and dy are read
// once and dx written once; each warp also keeps the sums of its rows for the gradients of weight and bias, which are
// joined over the warps of a block, a split of the rows, and then over the splits. No atomics.
#pragma once
#include <type_traits>
#include <cuda_runtime.h>
#include "common/columns.cuh"
#include "common/reduce.cuh"
#include "common/vectors.cuh"
#include "normalisation/layer_norm_sizes.h"

namespace jea {

// A row's mean as float32 and the part of it that float32 does not hold, and 1 / sqrt(variance + eps).
struct LayerNormRow {
    float mean, rest, inverse;
};

constexpr int kWarps = kThreads / 32;

// A lane's part of a row: K vectors of V, 32 vectors apart; zeros beyond the width.
template <int K, int V>
struct RowPart {
    float of[K * V];

    __device__ static int column(int i) { return (i / V * 32 + threadIdx.x % 32) * V + i % V; }
    __device__ void take(const float* row, int width) {
        #pragma unroll
        for (int k = 0; k < K; k++) {
            const Vector<float, V> some = column(k * V) < width ? load<V>(row + column(k * V)) : filled<V, float>(0.f);
            #pragma unroll
            for (int v = 0; v < V; v++) of[k * V + v] = some.of[v];
        }
    }
    __device__ void put(float* row, int width) const {
        #pragma unroll
        for (int k = 0; k < K; k++) {
            Vector<float, V> some;
            #pragma unroll
            for (int v = 0; v < V; v++) some.of[v] = of[k * V + v];
            if (column(k * V) < width) *reinterpret_cast<Vector<float, V>*>(row + column(k * V)) = some;
        }
    }
};

template <int K, int V>
__global__ void __launch_bounds__(kThreads)
layer_norm_rows(LayerNorm d, const float* __restrict__ x, const float* __restrict__ weight,
                const float* __restrict__ bias, float* __restrict__ y, LayerNormRow* __restrict__ rows) {
    const long r = static_cast<long>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (r >= d.rows) return;
    const int width = static_cast<int>(d.width);
    const float count = static_cast<float>(width);
    RowPart<K, V> in, scale, shift;
    in.take(x + r * width, width);
    scale.take(weight, width);
    shift.take(bias, width);
    const float pivot = __shfl_sync(kAllLanes, in.of[0], 0);
    float sum = 0.f;
    #pragma unroll
    for (int i = 0; i < K * V; i++) sum += in.column(i) < width ? in.of[i] - pivot : 0.f;
    const float mean = pivot + __fdiv_rn(sum_of_warp(sum), count);
    // Two passes: the squares are of differences from the mean.
    sum = 0.f;
    float squares = 0.f;
    #pragma unroll
    for (int i = 0; i < K * V; i++) {
        const float apart = in.column(i) < width ? in.of[i] - mean : 0.f;
        sum += apart;
        squares += apart * apart;
    }
    const float rest = __fdiv_rn(sum_of_warp(sum), count);
    const double variance = __fdiv_rn(sum_of_warp(squares), count) - static_cast<double>(rest) * rest;
    const float inverse = static_cast<float>(1. / sqrt((variance < 0. ? 0. : variance) + d.eps));
    #pragma unroll
    for (int i = 0; i < K * V; i++) in.of[i] = (in.of[i] - mean - rest) * inverse * scale.of[i] + shift.of[i];
    in.put(y + r * width, width);
    if (threadIdx.x % 32 == 0) rows[r] = LayerNormRow{mean, rest, inverse};
}

// With h = (x - mean) / sqrt(variance + eps) and g = dy weight: dx = (g - mean(g) - h mean(g h)) / sqrt(variance + eps)
// partial (splits, 2, width): sums of dy h and of dy over a split of the rows.
template <int K, int V>
__global__ void __launch_bounds__(kThreads)
layer_norm_gradient(LayerNorm d, const float* __restrict__ x, const float* __restrict__ weight,
                    const LayerNormRow* __restrict__ rows, const float* __restrict__ dy, float* __restrict__ dx,
                    float* __restrict__ partial) {
    __shared__ float of_block[2][32 * K * V];
    const int width = static_cast<int>(d.width), warp = threadIdx.x / 32;
    const float count = static_cast<float>(width);
    const long each = (d.rows + d.splits - 1) / d.splits, first = blockIdx.x * each, last = min(first + each, d.rows);
    RowPart<K, V> scale, weight_sums = {}, bias_sums = {};
    scale.take(weight, width);
    for (long r = first + warp; r < last; r += kWarps) {
        RowPart<K, V> h, g;
        h.take(x + r * width, width);
        g.take(dy + r * width, width);
        const LayerNormRow row = rows[r];
        float sum = 0.f, product = 0.f;
        #pragma unroll
        for (int i = 0; i < K * V; i++) {
            h.of[i] = (h.of[i] - row.mean - row.rest) * row.inverse;
            weight_sums.of[i] += g.of[i] * h.of[i];
            bias_sums.of[i] += g.of[i];
            g.of[i] *= scale.of[i];
            sum += g.of[i];
            product += g.of[i] * h.of[i];
        }
        const float offset = __fdiv_rn(sum_of_warp(sum), count), slope = __fdiv_rn(sum_of_warp(product), count);
        #pragma unroll
        for (int i = 0; i < K * V; i++) h.of[i] = row.inverse * (g.of[i] - offset - h.of[i] * slope);
        h.put(dx + r * width, width);
    }
    for (int turn = 0; turn < kWarps; turn++) {
        if (warp == turn) {
            #pragma unroll
            for (int i = 0; i < K * V; i++) {
                const int c = scale.column(i);
                of_block[0][c] = weight_sums.of[i] + (turn > 0 ? of_block[0][c] : 0.f);
                of_block[1][c] = bias_sums.of[i] + (turn > 0 ? of_block[1][c] : 0.f);
            }
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < width; c += kThreads) {
        partial[blockIdx.x * 2 * d.width + c] = of_block[0][c];
        partial[(blockIdx.x * 2 + 1) * d.width + c] = of_block[1][c];
    }
}

// Rows of K vectors of V a lane, 32 K V at least the width; V = 4 wants a width that 4 divides and aligned arrays.
template <int K, int V>
void layer_norm_forward(const LayerNorm& d, const float* x, const float* weight, const float* bias, float* y, float* rows) {
    layer_norm_rows<K, V><<<blocks_of(d.rows, kWarps), kThreads>>>(d, x, weight, bias, y,
                                                                   reinterpret_cast<LayerNormRow*>(rows));
}

// workspace: 2 splits width floats
template <int K, int V>
void layer_norm_backward(const LayerNorm& d, const float* x, const float* weight, const float* rows, const float* dy,
                         float* dx, float* dweight, float* dbias, float* workspace) {
    layer_norm_gradient<K, V><<<static_cast<unsigned>(d.splits), kThreads>>>(
        d, x, weight, reinterpret_cast<const LayerNormRow*>(rows), dy, dx, workspace);
    sum_over_splits<float>(2 * d.width, d.splits, workspace, d.width, dweight, dbias);
}

}  // namespace jea
