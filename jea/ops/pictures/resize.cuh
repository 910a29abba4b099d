// Bilinear resize with aligned corners and its gradient, on CUDA. See resize.py. A warp works on a row.
#pragma once
#include <cuda_runtime.h>

namespace jea {

// Output index i of an axis: its lower source index and the weight of the upper one, computed as PyTorch does (float32
// scale, float32 position), so that the results agree to the last digits.
struct ResizeAxis {
    int in, out;
    float scale;

    ResizeAxis(int in, int out)
        : in(in), out(out), scale(out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.f) {}

    __device__ int low(int i) const { return min(static_cast<int>(__fmul_rn(scale, i)), in - 1); }
    __device__ int high(int low) const { return low + (low < in - 1 ? 1 : 0); }
    __device__ float weight(int i, int low) const { return __fmul_rn(scale, i) - low; }

    // The weight of source `of` in output i.
    __device__ float weight_of(int of, int i) const {
        const int below = low(i);
        const float above = weight(i, below);
        return (below == of ? 1.f - above : 0.f) + (high(below) == of ? above : 0.f);
    }
    // Outputs [first, last) that source `of` takes part in, and perhaps one more at either end.
    __device__ int first(int of) const { return scale > 0.f ? max(static_cast<int>((of - 1) / scale) - 1, 0) : 0; }
    __device__ int last(int of) const {
        return scale > 0.f ? static_cast<int>(min((of + 1) / scale + 2.f, static_cast<float>(out))) : out;
    }
};

constexpr int kRowsOfBlock = 8;

__global__ void resize_rows(ResizeAxis rows, ResizeAxis columns, long planes, const float* __restrict__ x,
                            float* __restrict__ y) {
    const long row = static_cast<long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= planes * rows.out) return;
    const long plane = row / rows.out;
    const int i = static_cast<int>(row % rows.out), low = rows.low(i);
    const float b = rows.weight(i, low), a = 1.f - b;
    const float* top = x + (plane * rows.in + low) * columns.in;
    const float* bottom = x + (plane * rows.in + rows.high(low)) * columns.in;
    for (int j = threadIdx.x; j < columns.out; j += blockDim.x) {
        const int left = columns.low(j), right = columns.high(left);
        const float d = columns.weight(j, left), c = 1.f - d;
        y[row * columns.out + j] = a * (c * top[left] + d * top[right]) + b * (c * bottom[left] + d * bottom[right]);
    }
}

// Each source collects from the outputs that it takes part in: no atomics.
__global__ void resize_gradient_rows(ResizeAxis rows, ResizeAxis columns, long planes, const float* __restrict__ dy,
                                     float* __restrict__ dx) {
    const long row = static_cast<long>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= planes * rows.in) return;
    const long plane = row / rows.in;
    const int source = static_cast<int>(row % rows.in);
    for (int column = threadIdx.x; column < columns.in; column += blockDim.x) {
        const int first = columns.first(column), last = columns.last(column);
        float sum = 0.f;
        for (int i = rows.first(source); i < rows.last(source); i++) {
            const float* g = dy + (plane * rows.out + i) * columns.out;
            float along = 0.f;
            for (int j = first; j < last; j++) along += columns.weight_of(column, j) * g[j];
            sum += rows.weight_of(source, i) * along;
        }
        dx[row * columns.in + column] = sum;
    }
}

inline unsigned blocks_of_rows(long rows) { return static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock); }

inline void resize_forward(const float* x, float* y, long planes, int h, int w, int out_h, int out_w) {
    resize_rows<<<blocks_of_rows(planes * out_h), dim3(32, kRowsOfBlock)>>>(ResizeAxis(h, out_h), ResizeAxis(w, out_w),
                                                                            planes, x, y);
}

inline void resize_backward(const float* dy, float* dx, long planes, int h, int w, int out_h, int out_w) {
    resize_gradient_rows<<<blocks_of_rows(planes * h), dim3(32, kRowsOfBlock)>>>(
        ResizeAxis(h, out_h), ResizeAxis(w, out_w), planes, dy, dx);
}

}  // namespace jea
