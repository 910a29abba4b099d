// BatchNorm over (batch, channels, inner), with an optional summand and ReLU, and its gradient, on CUDA. See
// batch_norm.py.
//
// A channel is cut into splits, one block each. Forward: moments of each split, these joined, the result: x is read
// twice and y written once; with given statistics read once. Backward likewise. No atomics.
// T, the type of x, y, the summand and their gradients, is float, __half or __nv_bfloat16; all else is float.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "normalisation/batch_norm_sizes.h"

namespace jea {

// Number, mean and sum of squared differences from the mean, joined without cancellation (Chan et al.). In float64, for
// means far from zero.
struct Moments {
    double count, mean, squares;

    __device__ void add(const Moments& other) {
        const double all = count + other.count, share = all > 0. ? other.count / all : 0., apart = other.mean - mean;
        squares += other.squares + apart * apart * count * share;
        mean += apart * share;
        count = all;
    }
};

struct SumAndProduct {
    float sum, product;

    __device__ void add(const SumAndProduct& other) {
        sum += other.sum;
        product += other.product;
    }
};

// What y and dx are made of, per channel.
struct Factors {
    float scale, shift;
};
struct GradientFactors {
    float scale, offset, slope;
};

// Calls use(index into x) for each element of this block's split of channel c that is this thread's.
template <class Use>
__device__ void for_elements(const BatchNorm& d, long c, long split, const Use& use) {
    const long each = (d.count() + d.splits - 1) / d.splits, first = split * each, last = min(first + each, d.count());
    const long rows = kThreads / d.inner, rest = kThreads % d.inner;
    long i = first + threadIdx.x, b = i / d.inner, j = i % d.inner;
    #pragma unroll 4
    for (; i < last; i += kThreads) {
        use((b * d.channels + c) * d.inner + j);
        b += rows;
        j += rest;
        if (j >= d.inner) {
            j -= d.inner;
            b++;
        }
    }
}

// partial (channels, splits)
template <class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_statistics(BatchNorm d, const T* __restrict__ x, Moments* __restrict__ partial) {
    const long c = blockIdx.x / d.splits, split = blockIdx.x % d.splits;
    // Differences from the thread's first value: their squares keep their digits far from zero.
    float pivot = 0.f, sum = 0.f, squares = 0.f;
    int count = 0;
    for_elements(d, c, split, [&](long at) {
        const float value = static_cast<float>(x[at]);
        if (count++ == 0) pivot = value;
        sum += value - pivot;
        squares += (value - pivot) * (value - pivot);
    });
    const double mean = count > 0 ? static_cast<double>(sum) / count : 0.;
    const Moments all = joined(Moments{static_cast<double>(count), pivot + mean, squares - sum * mean});
    if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

// A thread for each channel: its mean and biased variance, joined or given, and the factors of y.
__global__ void batch_norm_join(BatchNorm d, const Moments* __restrict__ partial,
                                const float* __restrict__ weight, const float* __restrict__ bias,
                                const float* __restrict__ running_mean, const float* __restrict__ running_variance,
                                float* __restrict__ means, float* __restrict__ variances,
                                Factors* __restrict__ factors) {
    const long c = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= d.channels) return;
    double mean = running_mean[c], variance = running_variance[c];
    if (d.training) {
        Moments all{0., 0., 0.};
        for (long i = 0; i < d.splits; i++) all.add(partial[c * d.splits + i]);
        mean = all.mean;
        variance = all.squares < 0. ? 0. : all.squares / d.count();  // NaN stays
    }
    means[c] = static_cast<float>(mean);
    variances[c] = static_cast<float>(variance);
    const double scale = weight[c] / sqrt(variance + d.eps);
    // With the part of the mean that float32 does not hold.
    factors[c] = Factors{static_cast<float>(scale), static_cast<float>(bias[c] - (mean - means[c]) * scale)};
}

template <class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_apply(BatchNorm d, const T* __restrict__ x, const float* __restrict__ means,
                 const Factors* __restrict__ factors, const T* __restrict__ residual, T* __restrict__ y) {
    const long c = blockIdx.x / d.splits, split = blockIdx.x % d.splits;
    const float mean = means[c];
    const Factors factor = factors[c];
    for_elements(d, c, split, [&](long at) {
        float value = (static_cast<float>(x[at]) - mean) * factor.scale + factor.shift;
        if (residual) value += static_cast<float>(residual[at]);
        y[at] = static_cast<T>(d.relu && value <= 0.f ? 0.f : value);  // NaN is handed on
    });
}

// g = dy, or dy where y > 0 (relu).
template <class T>
__device__ float masked(const BatchNorm& d, const T* y, const T* dy, long at) {
    return d.relu && !(static_cast<float>(y[at]) > 0.f) ? 0.f : static_cast<float>(dy[at]);
}

// Sums of g and of g (x - mean).
template <class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_gradient_sums(BatchNorm d, const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ dy,
                         const float* __restrict__ means,
                         SumAndProduct* __restrict__ partial) {
    const long c = blockIdx.x / d.splits, split = blockIdx.x % d.splits;
    const float mean = means[c];
    SumAndProduct sums{0.f, 0.f};
    for_elements(d, c, split, [&](long at) {
        const float g = masked(d, y, dy, at);
        sums.sum += g;
        sums.product += g * (static_cast<float>(x[at]) - mean);
    });
    sums = joined(sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = sums;
}

__global__ void batch_norm_gradient_join(BatchNorm d, const SumAndProduct* __restrict__ partial,
                                         const float* __restrict__ weight, const float* __restrict__ variances,
                                         float* __restrict__ dweight, float* __restrict__ dbias,
                                         GradientFactors* __restrict__ factors) {
    const long c = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (c >= d.channels) return;
    double sum = 0., product = 0.;
    for (long i = 0; i < d.splits; i++) {
        sum += partial[c * d.splits + i].sum;
        product += partial[c * d.splits + i].product;
    }
    const double inverse = 1. / sqrt(variances[c] + d.eps), mean_of = d.training ? 1. / d.count() : 0.;
    dbias[c] = static_cast<float>(sum);
    dweight[c] = static_cast<float>(product * inverse);
    factors[c] = GradientFactors{static_cast<float>(weight[c] * inverse), static_cast<float>(sum * mean_of),
                                 static_cast<float>(product * mean_of * inverse * inverse)};
}

// dx = scale (g - mean(g) - (x - mean) mean(g (x - mean)) / variance); g itself is the gradient of the summand.
template <class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_gradient_apply(BatchNorm d, const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ dy,
                          const float* __restrict__ means, const GradientFactors* __restrict__ factors,
                          T* __restrict__ dx, T* __restrict__ dresidual) {
    const long c = blockIdx.x / d.splits, split = blockIdx.x % d.splits;
    const float mean = means[c];
    const GradientFactors factor = factors[c];
    for_elements(d, c, split, [&](long at) {
        const float g = masked(d, y, dy, at);
        if (dresidual) dresidual[at] = static_cast<T>(g);
        dx[at] = static_cast<T>(factor.scale
                                * (g - factor.offset - (static_cast<float>(x[at]) - mean) * factor.slope));
    });
}

inline unsigned blocks_of_channels(const BatchNorm& d) {
    return static_cast<unsigned>((d.channels + kThreads - 1) / kThreads);
}

// workspace: channels (2 + 6 splits) floats
template <class T>
inline void batch_norm_forward(const BatchNorm& d, const T* x, const float* weight, const float* bias,
                               const float* running_mean, const float* running_variance, const T* residual,
                               T* y, float* means, float* variances, float* workspace) {
    Moments* const partial = reinterpret_cast<Moments*>(workspace);
    Factors* const factors = reinterpret_cast<Factors*>(partial + d.channels * d.splits);
    const unsigned parts = static_cast<unsigned>(d.channels * d.splits);
    if (d.training) batch_norm_statistics<T><<<parts, kThreads>>>(d, x, partial);
    batch_norm_join<<<blocks_of_channels(d), kThreads>>>(d, partial, weight, bias, running_mean, running_variance,
                                                         means, variances, factors);
    batch_norm_apply<T><<<parts, kThreads>>>(d, x, means, factors, residual, y);
}

// The gradients of x, weight, bias and, unless null, the summand. workspace: channels (3 + 2 splits) floats
template <class T>
inline void batch_norm_backward(const BatchNorm& d, const T* x, const T* y, const T* dy, const float* weight,
                                const float* means, const float* variances, T* dx, float* dweight, float* dbias,
                                T* dresidual, float* workspace) {
    GradientFactors* const factors = reinterpret_cast<GradientFactors*>(workspace);
    SumAndProduct* const partial = reinterpret_cast<SumAndProduct*>(factors + d.channels);
    const unsigned parts = static_cast<unsigned>(d.channels * d.splits);
    batch_norm_gradient_sums<T><<<parts, kThreads>>>(d, x, y, dy, means, partial);
    batch_norm_gradient_join<<<blocks_of_channels(d), kThreads>>>(d, partial, weight, variances, dweight, dbias,
                                                                  factors);
    batch_norm_gradient_apply<T><<<parts, kThreads>>>(d, x, y, dy, means, factors, dx, dresidual);
}

}  // namespace jea
