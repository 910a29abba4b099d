// Bilinear resize with aligned corners of channels-last pictures, and its gradient, on CUDA. See resize.py.
//
// A thread has a vector of neighbouring channels of one position. T, the type of x and its gradient, is float, __half
// or __nv_bfloat16; y and its gradient are float.
#pragma once
#include <type_traits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "common/vectors.cuh"
#include "pictures/resize.cuh"

namespace jea {

struct ResizeNhwc {
    long batch;
    int height, width, channels, out_height, out_width;
};

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
resize_nhwc_forward(ResizeAxis rows, ResizeAxis columns, long count, int channels, const T* __restrict__ x,
                    float* __restrict__ y) {
    const long number = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (number >= count) return;
    const int vectors = channels / V, channel = static_cast<int>(number % vectors) * V;
    const long position = number / vectors, line = position / columns.out, picture = line / rows.out;
    const int i = static_cast<int>(line % rows.out), j = static_cast<int>(position % columns.out);
    const int top = rows.low(i), bottom = rows.high(top), left = columns.low(j), right = columns.high(left);
    const float b = rows.weight(i, top), a = 1.f - b, d = columns.weight(j, left), c = 1.f - d;
    const auto at = [&](int row, int column) {
        return load<V>(x + ((picture * rows.in + row) * columns.in + column) * channels + channel);
    };
    const Vector<T, V> corner[4] = {at(top, left), at(top, right), at(bottom, left), at(bottom, right)};
    Vector<float, V> mixed;
    #pragma unroll
    for (int v = 0; v < V; v++) {
        const auto value = [&](int k) { return static_cast<float>(corner[k].of[v]); };
        mixed.of[v] = a * (c * value(0) + d * value(1)) + b * (c * value(2) + d * value(3));
    }
    *reinterpret_cast<Vector<float, V>*>(y + number * V) = mixed;
}

// Each source collects from the outputs that it takes part in: no atomics.
template <int V, class T>
__global__ void __launch_bounds__(kThreads)
resize_nhwc_gradient(ResizeAxis rows, ResizeAxis columns, long count, int channels, const float* __restrict__ dy,
                     T* __restrict__ dx) {
    const long number = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (number >= count) return;
    const int vectors = channels / V, channel = static_cast<int>(number % vectors) * V;
    const long position = number / vectors, line = position / columns.in, picture = line / rows.in;
    const int row = static_cast<int>(line % rows.in), column = static_cast<int>(position % columns.in);
    const int first = columns.first(column), last = columns.last(column);
    float sums[V] = {};
    for (int i = rows.first(row); i < rows.last(row); i++) {
        const float* const of_row = dy + (picture * rows.out + i) * columns.out * channels + channel;
        const float weight = rows.weight_of(row, i);
        float along[V] = {};
        for (int j = first; j < last && weight > 0.f; j++) {
            const float share = columns.weight_of(column, j);
            const Vector<float, V> gradient = load<V>(of_row + static_cast<long>(j) * channels);
            #pragma unroll
            for (int v = 0; v < V; v++) along[v] += share * gradient.of[v];
        }
        #pragma unroll
        for (int v = 0; v < V; v++) sums[v] += weight * along[v];
    }
    Vector<T, V> all;
    #pragma unroll
    for (int v = 0; v < V; v++) all.of[v] = static_cast<T>(sums[v]);
    *reinterpret_cast<Vector<T, V>*>(dx + number * V) = all;
}

// Calls launch(V): vectors of 4 where the channels are made of them.
template <class Launch>
void with_resize_vectors(const ResizeNhwc& d, bool all_aligned, const Launch& launch) {
    if (all_aligned && d.channels % 4 == 0) launch(std::integral_constant<int, 4>());
    else launch(std::integral_constant<int, 1>());
}

template <class T>
void resize_forward(const ResizeNhwc& d, const T* x, float* y) {
    with_resize_vectors(d, aligned(x) && aligned(y), [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const long count = d.batch * d.out_height * d.out_width * (d.channels / V);
        resize_nhwc_forward<V, T><<<blocks_of(count, kThreads), kThreads>>>(
            ResizeAxis(d.height, d.out_height), ResizeAxis(d.width, d.out_width), count, d.channels, x, y);
    });
}

template <class T>
void resize_backward(const ResizeNhwc& d, const float* dy, T* dx) {
    with_resize_vectors(d, aligned(dy) && aligned(dx), [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const long count = d.batch * d.height * d.width * (d.channels / V);
        resize_nhwc_gradient<V, T><<<blocks_of(count, kThreads), kThreads>>>(
            ResizeAxis(d.height, d.out_height), ResizeAxis(d.width, d.out_width), count, d.channels, dy, dx);
    });
}

}  // namespace jea
