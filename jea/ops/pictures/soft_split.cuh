// Overlapping patches as tokens, and the gradient, on CUDA. See soft_split.py.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "pictures/soft_split_sizes.h"

namespace jea {

// A block for each token; tokens (batch, rows * columns, channels * kernel^2), the channel slowest within a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
soft_split_tokens(SoftSplit d, const T* __restrict__ picture, T* __restrict__ tokens) {
    const int columns = d.columns(), rows = d.rows(), width = d.width, height = d.height;
    const int row = blockIdx.x / columns, b = row / rows, kernel = d.kernel, area = kernel * kernel;
    const int top = row % rows * static_cast<int>(d.stride) - static_cast<int>(d.padding);
    const int left = static_cast<int>(blockIdx.x) % columns * static_cast<int>(d.stride) - static_cast<int>(d.padding);
    const int length = static_cast<int>(d.token());
    T* const token = tokens + static_cast<long>(blockIdx.x) * length;
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        const int c = i / area, within = i % area;
        const int y = top + within / kernel, x = left + within % kernel;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        token[i] = inside ? picture[d.at(b, c, y, x)] : static_cast<T>(0.f);
    }
}

// A thread for each element of the picture: it gathers the gradients of the tokens that hold it. No atomics.
template <class T>
__global__ void __launch_bounds__(kThreads)
soft_split_gradient(SoftSplit d, const T* __restrict__ dtokens, T* __restrict__ dpicture) {
    const long number = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (number >= d.batch * d.channels * d.height * d.width) return;
    // 32-bit numbers within a picture: 64-bit divisions would take most of the time.
    const int channels = d.channels, height = d.height, width = d.width, kernel = d.kernel, stride = d.stride;
    const int rows = d.rows(), columns = d.columns();
    const long b = number / (channels * height * width);
    const int i = static_cast<int>(number - b * (channels * height * width));
    const int pixel = d.channels_last ? i / channels : i;
    const int x = pixel % width, y = pixel / width % height;
    const int c = d.channels_last ? i % channels : i / (width * height);
    // Patches [first, last] along an axis hold a pixel: 0 <= pixel + padding - patch * stride < kernel.
    const int below = y + static_cast<int>(d.padding), right = x + static_cast<int>(d.padding);
    const int last_row = min(below / stride, rows - 1), last_column = min(right / stride, columns - 1);
    const int first_row = below < kernel ? 0 : (below - kernel) / stride + 1;
    const int first_column = right < kernel ? 0 : (right - kernel) / stride + 1;
    const T* const tokens = dtokens + b * rows * columns * d.token();
    float sum = 0.f;
    for (int r = first_row; r <= last_row; r++)
        for (int q = first_column; q <= last_column; q++) {
            const int within = (c * kernel + below - r * stride) * kernel + right - q * stride;
            sum += static_cast<float>(tokens[static_cast<long>(r * columns + q) * d.token() + within]);
        }
    dpicture[number] = static_cast<T>(sum);
}

template <class T>
void soft_split_forward(const SoftSplit& d, const T* picture, T* tokens) {
    const unsigned blocks = static_cast<unsigned>(d.batch * d.rows() * d.columns());
    if (blocks > 0) soft_split_tokens<<<blocks, kThreads>>>(d, picture, tokens);
}

template <class T>
void soft_split_backward(const SoftSplit& d, const T* dtokens, T* dpicture) {
    const unsigned blocks = blocks_of(d.batch * d.channels * d.height * d.width, kThreads);
    if (blocks > 0) soft_split_gradient<<<blocks, kThreads>>>(d, dtokens, dpicture);
}

}  // namespace jea
