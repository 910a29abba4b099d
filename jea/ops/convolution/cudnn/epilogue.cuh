// What stands around cuDNN's convolutions of channels-last pictures: what it would not fuse, gradients of bias and ReLU.
#pragma once
#include <cstdint>
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

struct Epilogue {
    int64_t rows, channels;
    bool relu;
};

// y = relu?(x + residual? + bias?) over rows of channels; in place where y is x.
template <class T>
__global__ void __launch_bounds__(kThreads)
add_and_clip(const T* x, const float* __restrict__ bias, const T* __restrict__ residual, T* y, int64_t count,
             int64_t channels, bool relu) {
    const int64_t step = gridDim.x * static_cast<int64_t>(kThreads);
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
        float value = static_cast<float>(x[i]);
        if (residual) value += static_cast<float>(residual[i]);
        if (bias) value += bias[i % channels];
        y[i] = static_cast<T>(relu && value < 0.f ? 0.f : value);
    }
}

template <class T>
void epilogue(const Epilogue& d, const T* x, const float* bias, const T* residual, T* y) {
    const int64_t count = d.rows * d.channels;
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    add_and_clip<<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), kThreads>>>(x, bias, residual, y, count,
                                                                                     d.channels, d.relu);
}

// dx = y > 0 ? dy : 0, the gradient of a ReLU with the result y.
template <class T>
__global__ void __launch_bounds__(kThreads)
where_positive(const T* __restrict__ y, const T* __restrict__ dy, T* __restrict__ dx, int64_t count) {
    const int64_t step = gridDim.x * static_cast<int64_t>(kThreads);
    for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step)
        dx[i] = static_cast<float>(y[i]) > 0.f ? dy[i] : static_cast<T>(0.f);
}

template <class T>
void relu_backward(const Epilogue& d, const T* y, const T* dy, T* dx) {
    const int64_t count = d.rows * d.channels;
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    where_positive<<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), kThreads>>>(y, dy, dx, count);
}

// db = sums of dy over the rows, one block for 32 channels. Rows are added up in a fixed order.
template <class T>
__global__ void __launch_bounds__(1024)
column_sums(const T* __restrict__ dy, float* __restrict__ db, int64_t rows, int64_t channels) {
    __shared__ float sums[32][33];
    const int64_t channel = blockIdx.x * int64_t{32} + threadIdx.x;
    float sum = 0.f;
    if (channel < channels)
        for (int64_t row = threadIdx.y; row < rows; row += 32) sum += static_cast<float>(dy[row * channels + channel]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    sum = sum_of_warp(sums[threadIdx.x][threadIdx.y]);
    const int64_t own = blockIdx.x * int64_t{32} + threadIdx.y;
    if (threadIdx.x == 0 && own < channels) db[own] = sum;
}

template <class T>
void bias_backward(const Epilogue& d, const T* dy, float* db) {
    column_sums<<<blocks_of(d.channels, 32), dim3(32, 32)>>>(dy, db, d.rows, d.channels);
}

}  // namespace jea
