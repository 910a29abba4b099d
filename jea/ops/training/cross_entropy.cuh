// Cross entropy per position of logits (batch, classes, positions), and its gradient, on CUDA. See cross_entropy.py.
//
// A block holds positions x class lanes, so that neighbouring threads read neighbouring logits both of pixels (many
// positions) and of whole pictures (one). The second read of a tile comes from the cache. No atomics.
#pragma once
#include <cmath>
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "training/cross_entropy_sizes.h"

namespace jea {

// Joins the values of the class lanes (a power of two) of this thread's position; the result in all of them.
template <class Join>
__device__ float over_lanes(float value, const Join& join) {
    __shared__ float values[kThreads];
    const int at = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    values[at] = value;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) values[at] = join(values[at], values[at + half * blockDim.x]);
    }
    __syncthreads();
    return values[threadIdx.x];
}

// Where a thread's position stands: its number among those of all maps, and the index of its first class's logit.
struct Place {
    long number, first;
    bool inside;

    __device__ explicit Place(const CrossEntropy& d) {
        number = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
        inside = number < d.batch * d.positions;
        const long map = number / d.positions;
        first = map * d.classes * d.positions + number - map * d.positions;
    }
};

// maxima and inverses (batch, positions) keep max_c x and 1 / sum_c exp(x - max) for the gradient. A NaN or +inf among
// the logits makes the sum NaN, as it must be.
template <class T>
__global__ void __launch_bounds__(kThreads)
cross_entropy_losses(CrossEntropy d, const T* __restrict__ x, const int* __restrict__ labels,
                     float* __restrict__ losses, float* __restrict__ maxima, float* __restrict__ inverses) {
    const Place place(d);
    float most = -INFINITY, sum = 0.f, total = 0.f;
    for (long c = threadIdx.y; c < d.classes && place.inside; c += blockDim.y)
        most = fmaxf(most, static_cast<float>(x[place.first + c * d.positions]));
    most = over_lanes(most, [](float a, float b) { return fmaxf(a, b); });
    for (long c = threadIdx.y; c < d.classes && place.inside; c += blockDim.y) {
        const float apart = static_cast<float>(x[place.first + c * d.positions]) - most;
        sum += expf(apart);
        total += apart;
    }
    sum = over_lanes(sum, [](float a, float b) { return a + b; });
    total = over_lanes(total, [](float a, float b) { return a + b; });
    if (!place.inside || threadIdx.y > 0) return;
    const int label = labels[place.number];
    float loss = label == d.ignored ? 0.f : __int_as_float(0x7fc00000);
    if (label != d.ignored && label >= 0 && label < d.classes) {
        // float32's fast logarithm would lose the digits of small losses.
        loss = static_cast<float>(log(static_cast<double>(sum)));
        loss -= (1.f - d.smoothing) * (static_cast<float>(x[place.first + label * d.positions]) - most);
        if (d.smoothing > 0.f) loss -= __fdiv_rn(d.smoothing, static_cast<float>(d.classes)) * total;
    }
    losses[place.number] = loss;
    maxima[place.number] = most;
    inverses[place.number] = __fdiv_rn(1.f, sum);
}

// dx = g (softmax(x) - target distribution), 0 at ignored positions.
template <class T>
__global__ void __launch_bounds__(kThreads)
cross_entropy_gradient(CrossEntropy d, const T* __restrict__ x, const int* __restrict__ labels,
                       const float* __restrict__ maxima, const float* __restrict__ inverses,
                       const float* __restrict__ g, T* __restrict__ dx) {
    const Place place(d);
    if (!place.inside) return;
    const int label = labels[place.number];
    const float most = maxima[place.number], inverse = inverses[place.number], weight = g[place.number];
    const float off = __fdiv_rn(d.smoothing, static_cast<float>(d.classes)), on = 1.f - d.smoothing;
    for (long c = threadIdx.y; c < d.classes; c += blockDim.y) {
        const long at = place.first + c * d.positions;
        const float softmax = expf(static_cast<float>(x[at]) - most) * inverse;
        const float gradient = weight * (softmax - off - (c == label ? on : 0.f));
        dx[at] = static_cast<T>(label == d.ignored ? 0.f : gradient);
    }
}

// Up to 32 positions, and class lanes for the rest of the block.
inline dim3 cross_entropy_block(const CrossEntropy& d) {
    unsigned positions = 1, lanes = 1;
    while (positions < 32 && 2 * positions <= d.positions) positions *= 2;
    while (positions * lanes < kThreads && lanes < d.classes) lanes *= 2;
    return dim3(positions, lanes);
}

template <class T>
void cross_entropy_forward(const CrossEntropy& d, const T* x, const int* labels, float* losses, float* maxima,
                           float* inverses) {
    const dim3 block = cross_entropy_block(d);
    const unsigned blocks = blocks_of(d.batch * d.positions, block.x);
    if (blocks > 0) cross_entropy_losses<<<blocks, block>>>(d, x, labels, losses, maxima, inverses);
}

template <class T>
void cross_entropy_backward(const CrossEntropy& d, const T* x, const int* labels, const float* maxima,
                            const float* inverses, const float* g, T* dx) {
    const dim3 block = cross_entropy_block(d);
    const unsigned blocks = blocks_of(d.batch * d.positions, block.x);
    if (blocks > 0) cross_entropy_gradient<<<blocks, block>>>(d, x, labels, maxima, inverses, g, dx);
}

}  // namespace jea
