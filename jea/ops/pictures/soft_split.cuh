// Overlapping patches as tokens, and the gradient, on CUDA. See soft_split.py.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

// Element (b, c, y, x) of the picture stands at ((b * height + y) * width + x) * channels + c if channels are last,
// else at ((b * channels + c) * height + y) * width + x.
struct SoftSplit {
    long batch, channels, height, width, kernel, stride, padding;
    bool channels_last;

    __host__ __device__ long rows() const { return (height + 2 * padding - kernel) / stride + 1; }
    __host__ __device__ long columns() const { return (width + 2 * padding - kernel) / stride + 1; }
    __host__ __device__ int token() const { return static_cast<int>(channels * kernel * kernel); }
    __device__ long at(long b, long c, long y, long x) const {
        return channels_last ? ((b * height + y) * width + x) * channels + c
                             : ((b * channels + c) * height + y) * width + x;
    }
};

// A block for each token; tokens (batch, rows * columns, channels * kernel^2), the channel slowest within a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
soft_split_tokens(SoftSplit d, const T* __restrict__ picture, T* __restrict__ tokens) {
    const long row = blockIdx.x / d.columns(), b = row / d.rows();
    const long top = row % d.rows() * d.stride - d.padding, left = blockIdx.x % d.columns() * d.stride - d.padding;
    const int kernel = static_cast<int>(d.kernel), area = kernel * kernel;
    T* const token = tokens + static_cast<long>(blockIdx.x) * d.token();
    for (int i = threadIdx.x; i < d.token(); i += blockDim.x) {
        const int c = i / area, within = i % area;
        const long y = top + within / kernel, x = left + within % kernel;
        const bool inside = y >= 0 && y < d.height && x >= 0 && x < d.width;
        token[i] = inside ? picture[d.at(b, c, y, x)] : static_cast<T>(0.f);
    }
}

// A thread for each element of the picture: it gathers the gradients of the tokens that hold it. No atomics.
template <class T>
__global__ void __launch_bounds__(kThreads)
soft_split_gradient(SoftSplit d, const T* __restrict__ dtokens, T* __restrict__ dpicture) {
    const long i = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= d.batch * d.channels * d.height * d.width) return;
    const long pixel = d.channels_last ? i / d.channels : i;
    const long x = pixel % d.width, y = pixel / d.width % d.height;
    const long c = d.channels_last ? i % d.channels : i / (d.width * d.height) % d.channels;
    const long b = i / (d.width * d.height * d.channels);
    // Patches [first, last] along an axis hold a pixel: 0 <= pixel + padding - patch * stride < kernel.
    const long below = y + d.padding, right = x + d.padding;
    const long last_row = min(below / d.stride, d.rows() - 1), last_column = min(right / d.stride, d.columns() - 1);
    const long first_row = below < d.kernel ? 0 : (below - d.kernel) / d.stride + 1;
    const long first_column = right < d.kernel ? 0 : (right - d.kernel) / d.stride + 1;
    float sum = 0.f;
    for (long r = first_row; r <= last_row; r++)
        for (long q = first_column; q <= last_column; q++) {
            const long within = ((c * d.kernel) + below - r * d.stride) * d.kernel + right - q * d.stride;
            sum += static_cast<float>(dtokens[((b * d.rows() + r) * d.columns() + q) * d.token() + within]);
        }
    dpicture[i] = static_cast<T>(sum);
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
