// 3x3 maximum with stride 2 and padding 1 of channels-last pictures, and its gradient, on CUDA. See max_pool.py.
//
// A thread has a vector of neighbouring channels of one position. Forward also keeps which of the nine was the largest,
// so that each input collects its gradient from the up to four windows that it stands in: no atomics.
#pragma once
#include <cmath>
#include <type_traits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "common/vectors.cuh"

namespace jea {

struct MaxPool {
    long batch;
    int height, width, channels;

    __host__ __device__ int rows() const { return (height + 1) / 2; }
    __host__ __device__ int columns() const { return (width + 1) / 2; }
};

// Position and first channel of vector `number` of pictures of rows x columns.
struct PoolPlace {
    long picture;
    int i, j, channel;

    __device__ PoolPlace(unsigned long number, int rows, int columns, int vectors, int vector) {
        channel = static_cast<int>(number % vectors) * vector;
        number /= vectors;
        j = static_cast<int>(number % columns);
        number /= columns;
        i = static_cast<int>(number % rows);
        picture = number / rows;
    }
};

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
max_pool_forward(MaxPool d, const T* __restrict__ x, T* __restrict__ y, signed char* __restrict__ places) {
    const long count = d.batch * d.rows() * d.columns() * (d.channels / V);
    const long number = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (number >= count) return;
    const PoolPlace at(number, d.rows(), d.columns(), d.channels / V, V);
    Vector<T, V> window[9];
    bool inside[9];
    #pragma unroll
    for (int k = 0; k < 9; k++) {
        const int h = 2 * at.i + k / 3 - 1, w = 2 * at.j + k % 3 - 1;
        inside[k] = h >= 0 && h < d.height && w >= 0 && w < d.width;
        const int row = inside[k] ? h : 2 * at.i, column = inside[k] ? w : 2 * at.j;  // then one that is there anyway
        window[k] = load<V>(x + ((at.picture * d.height + row) * d.width + column) * d.channels + at.channel);
    }
    Vector<T, V> most;
    Vector<signed char, V> place;
    #pragma unroll
    for (int v = 0; v < V; v++) {
        float largest = -INFINITY;
        int found = 4;  // the middle is always inside
        #pragma unroll
        for (int k = 0; k < 9; k++) {
            const float value = static_cast<float>(window[k].of[v]);
            if (inside[k] && (value > largest || value != value)) {
                largest = value;
                found = k;
            }
        }
        most.of[v] = static_cast<T>(largest);
        place.of[v] = static_cast<signed char>(found);
    }
    const long to = number * V;
    *reinterpret_cast<Vector<T, V>*>(y + to) = most;
    *reinterpret_cast<Vector<signed char, V>*>(places + to) = place;
}

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
max_pool_gradient(MaxPool d, const T* __restrict__ dy, const signed char* __restrict__ places, T* __restrict__ dx) {
    const long count = d.batch * d.height * d.width * (d.channels / V);
    const long number = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (number >= count) return;
    const PoolPlace at(number, d.height, d.width, d.channels / V, V);
    float sums[V] = {};
    #pragma unroll
    for (int k = 0; k < 4; k++) {
        // An even row stands in the middle of one window, an odd one at the edges of two.
        const int i = (at.i + k / 2) / 2, j = (at.j + k % 2) / 2;
        if ((k / 2 && at.i % 2 == 0) || (k % 2 && at.j % 2 == 0) || i >= d.rows() || j >= d.columns()) continue;
        const int own = (at.i - 2 * i + 1) * 3 + at.j - 2 * j + 1;
        const long from = ((at.picture * d.rows() + i) * d.columns() + j) * d.channels + at.channel;
        const Vector<T, V> gradient = load<V>(dy + from);
        const Vector<signed char, V> place = load<V>(places + from);
        #pragma unroll
        for (int v = 0; v < V; v++) sums[v] += place.of[v] == own ? static_cast<float>(gradient.of[v]) : 0.f;
    }
    Vector<T, V> all;
    #pragma unroll
    for (int v = 0; v < V; v++) all.of[v] = static_cast<T>(sums[v]);
    *reinterpret_cast<Vector<T, V>*>(dx + number * V) = all;
}

template <class T, class Launch>
void with_pool_vectors(const MaxPool& d, bool all_aligned, const Launch& launch) {
    if (all_aligned && d.channels % kWidest<T> == 0) launch(std::integral_constant<int, kWidest<T>>());
    else launch(std::integral_constant<int, 1>());
}

template <class T>
void max_pool(const MaxPool& d, const T* x, T* y, signed char* places) {
    with_pool_vectors<T>(d, aligned(x) && aligned(y) && aligned(places), [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const unsigned blocks = blocks_of(d.batch * d.rows() * d.columns() * (d.channels / V), kThreads);
        if (blocks > 0) max_pool_forward<V, T><<<blocks, kThreads>>>(d, x, y, places);
    });
}

template <class T>
void max_pool_backward(const MaxPool& d, const T* dy, const signed char* places, T* dx) {
    with_pool_vectors<T>(d, aligned(dy) && aligned(dx) && aligned(places), [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const unsigned blocks = blocks_of(d.batch * d.height * d.width * (d.channels / V), kThreads);
        if (blocks > 0) max_pool_gradient<V, T><<<blocks, kThreads>>>(d, dy, places, dx);
    });
}

}  // namespace jea
