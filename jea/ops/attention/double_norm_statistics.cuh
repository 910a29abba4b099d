// What the kernels of double_norm.cuh share: the sizes, exponentials, statistics and how they are joined.
// Jittor compiles with --use_fast_math: divisions that must be exact are written __fdiv_rn.
#pragma once
#include <cfloat>
#include <cmath>
#include <type_traits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "common/vectors.cuh"

namespace jea {

struct DoubleNorm {
    long batch;  // as many maps, of S memories and N positions each; heads S N is less than 2^31
    int memories, positions;
    int heads;  // of (N, heads, S): the rows of so many maps stand side by side
    int splits, each;  // of the positions, in the launches that sum over them, and the positions of one
};

constexpr int kWarps = kThreads / 32;
constexpr int kJoinedByBlocks = 512;  // memories whose statistics every block of the second launch joins

// exp(x) for x <= 0, to 3 units in the last place of float; 0 below -104; NaN for NaN.
__device__ inline float exp_negative(float x) {
    const float whole = x * 1.44269504f;
    const float rest = fmaf(x, 1.92596303e-8f, fmaf(x, 1.44269504f, -whole));
    const float power = exp2f(whole);
    return x < -104.f ? 0.f : fmaf(power * rest, 0.693147181f, power);
}

// Likewise to the digits of T: half precision does not see the part of x log2(e) that float32 rounds away.
template <class T>
__device__ float exp_for(float x) {
    return sizeof(T) == sizeof(float) ? exp_negative(x) : exp2f(x * 1.44269504f);
}

// sum_i exp(x_i - most) with its maximum; over no x at all (-FLT_MAX, 0). -inf adds nothing.
struct Softmax {
    float most, sum;

    template <class T, int K>
    __device__ void add_all(const float (&x)[K]) {
        float both = most, more = 0.f;
        #pragma unroll
        for (int i = 0; i < K; i++) both = fmaxf(both, x[i]);
        #pragma unroll
        for (int i = 0; i < K; i++) more += exp_for<T>(x[i] - both);
        sum = fmaf(sum, exp_for<T>(most - both), more);
        most = both;
    }
    // +inf - +inf makes the sum NaN, as it must be.
    __device__ void add(const Softmax& other) {
        const float both = fmaxf(most, other.most);
        sum = sum * exp_negative(most - both) + other.sum * exp_negative(other.most - both);
        most = both;
    }
    __device__ void add_lane(int distance) {
        const float other_most = __shfl_xor_sync(kAllLanes, most, distance);
        const float other_sum = __shfl_xor_sync(kAllLanes, sum, distance);
        add(Softmax{other_most, other_sum});
    }
    // NaN where there is no softmax: a NaN or +inf made the sum NaN, and with every position masked it is 0 and a
    // becomes 0 * inf.
    __device__ Softmax inverted() const { return Softmax{most, __fdiv_rn(1.f, sum)}; }
};

struct Sum {
    float sum;

    __device__ void add(const Sum& other) { sum += other.sum; }
    __device__ void add_lane(int distance) { sum += __shfl_xor_sync(kAllLanes, sum, distance); }
    __device__ Sum inverted() const { return *this; }
};

template <class T> __device__ T nothing();
template <> __device__ inline Softmax nothing() { return Softmax{-FLT_MAX, 0.f}; }
template <> __device__ inline Sum nothing() { return Sum{0.f}; }

// Joins `count` rows of partial (rows, splits), eight lanes to a row; block `part` of `parts` takes its share of them.
template <class T>
__device__ void join_rows(long count, int splits, const T* __restrict__ partial, T* joined, long part, long parts) {
    constexpr int kLanes = 8;
    const int thread = threadIdx.x, lane = thread % kLanes;
    for (long start = part * (kThreads / kLanes); start < count; start += parts * (kThreads / kLanes)) {
        const long row = start + thread / kLanes;
        T value = nothing<T>();
        if (row < count)
            for (int i = lane; i < splits; i += kLanes) value.add(partial[row * splits + i]);
        for (int distance = kLanes / 2; distance > 0; distance /= 2) value.add_lane(distance);
        if (lane == 0 && row < count) joined[row] = value.inverted();
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
double_norm_join(long rows, int splits, const T* __restrict__ partial, T* __restrict__ joined) {
    join_rows(rows, splits, partial, joined, blockIdx.x, gridDim.x);
}

// The joined rows of one map: joined by this block into `own`, or where there are many, by double_norm_join before.
template <class T>
__device__ const T* joined_rows(const DoubleNorm& d, long map, const T* partial, const T* joined,
                                T (&own)[kJoinedByBlocks]) {
    if (d.memories > kJoinedByBlocks) return joined + map * d.memories;
    join_rows(d.memories, d.splits, partial + map * d.memories * d.splits, own, 0L, 1L);
    __syncthreads();
    return own;
}

// What a block of the second launch works on: positions [first, last) of a map, in tiles.
struct Share {
    long map;
    int first, last;

    __device__ Share(const DoubleNorm& d, int parts, int tile) {
        map = d.batch - 1 - blockIdx.x / parts;
        const int tiles = (d.positions + tile - 1) / tile, each = (tiles + parts - 1) / parts * tile;
        first = static_cast<int>(blockIdx.x % parts) * each;
        last = min(first + each, d.positions);
    }
};

// Blocks for each map: many for a large GPU, but two tiles of work or more for each where there is enough.
inline int parts_of_map(const DoubleNorm& d, int tile) {
    const long tiles = (d.positions + tile - 1) / tile, many = 2112 / d.batch, few = 264 / d.batch;
    long parts = many < tiles / 2 ? many : tiles / 2;
    parts = parts > few ? parts : few;
    parts = parts < tiles ? parts : tiles;
    return parts > 1 ? static_cast<int>(parts) : 1;
}

// Joins the rows of all maps where the blocks do not do it themselves.
template <class T>
void join_many(const DoubleNorm& d, const T* partial, T* joined) {
    const long rows = d.batch * d.memories;
    if (d.memories > kJoinedByBlocks)
        double_norm_join<T><<<blocks_of(rows, kThreads / 8), kThreads>>>(rows, d.splits, partial, joined);
}

}  // namespace jea
