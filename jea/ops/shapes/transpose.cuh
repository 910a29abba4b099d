// Any permutation of axes that moves the last one, on CUDA. See transpose.py.
//
// Two axes matter: x's last, and the one that becomes y's last. A block moves a tile of 32 x 32 of them through shared
// memory, so that neighbouring threads read neighbours of x and write neighbours of y. All other axes only say where a
// tile begins. Elements are moved as bits: any type of 2, 4 or 8 bytes.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

constexpr int kOtherAxes = 4;
constexpr int kTile = 32;

struct Transpose {
    long rows, columns;          // lengths of the axis that becomes y's last, and of x's last
    long row_step, column_step;  // from a row to the next in x, and from a column to the next in y
    struct Axis { long length, in, out; } others[kOtherAxes];  // and the steps along them in x and y
};

template <class T>
__global__ void __launch_bounds__(kThreads) transpose_tiles(Transpose d, const T* __restrict__ x, T* __restrict__ y) {
    __shared__ T tile[kTile][kTile + 1];
    const unsigned across = (d.columns + kTile - 1) / kTile, down = (d.rows + kTile - 1) / kTile;
    unsigned block = blockIdx.x;
    const long column = block % across * kTile;
    block /= across;
    const long row = block % down * kTile;
    block /= down;
    for (const Transpose::Axis& axis : d.others) {
        const unsigned length = axis.length, i = block % length;
        block /= length;
        x += i * axis.in;
        y += i * axis.out;
    }
    const int lane = threadIdx.x, first = threadIdx.y;
    constexpr int kEach = kTile * kTile / kThreads;
    #pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int r = first + i * (kTile / kEach);
        if (row + r < d.rows && column + lane < d.columns) tile[r][lane] = x[(row + r) * d.row_step + column + lane];
    }
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < kEach; i++) {
        const int c = first + i * (kTile / kEach);
        if (row + lane < d.rows && column + c < d.columns) y[(column + c) * d.column_step + row + lane] = tile[lane][c];
    }
}

template <int kBytes> struct Bits;
template <> struct Bits<2> { using Type = unsigned short; };
template <> struct Bits<4> { using Type = unsigned; };
template <> struct Bits<8> { using Type = unsigned long long; };

template <class T>
void transpose(const Transpose& d, const T* x, T* y) {
    using Type = typename Bits<sizeof(T)>::Type;
    long blocks = blocks_of(d.columns, kTile) * static_cast<long>(blocks_of(d.rows, kTile));
    for (const Transpose::Axis& axis : d.others) blocks *= axis.length;
    if (blocks == 0) return;
    transpose_tiles<<<static_cast<unsigned>(blocks), dim3(kTile, kThreads / kTile)>>>(
        d, reinterpret_cast<const Type*>(x), reinterpret_cast<Type*>(y));
}

}  // namespace jea
