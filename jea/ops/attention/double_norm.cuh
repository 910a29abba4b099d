// Double normalisation of (S, N) or (N, S) matrices, and its gradient, on CUDA. See double_norm.py.
//
// A block holds a tile of memories x positions, one thread for `R` memories of a position, so that both sums can be
// taken and loads are contiguous in either layout. Three passes: maximum and sum of each memory over a split of the
// positions; these joined over the splits; the map, whose tile stays in registers between its two steps. x is read
// twice and y written once. No atomics: the same input gives the same bits.
// Jittor compiles with --use_fast_math: divisions that must be exact are written __fdiv_rn.
#pragma once
#include <cfloat>
#include <type_traits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

struct DoubleNorm {
    long batch, memories, positions;  // as many maps, of S memories and N positions each
    bool positions_last;  // (S, N), else (N, S)
    long heads;  // not positions_last: the rows of so many maps stand side by side, (N, heads, S)
    long splits;  // of the positions, in the passes that sum over them
};

constexpr int kFewMemories = 8;  // a thread's, where a block need not hold all memories

// exp(x) for x <= 0, to 3 units in the last place; 0 below -104; NaN for NaN.
__device__ inline float exp_negative(float x) {
    const float whole = x * 1.44269504f;
    const float rest = fmaf(x, 1.92596303e-8f, fmaf(x, 1.44269504f, -whole));
    const float power = exp2f(whole);
    return x < -104.f ? 0.f : fmaf(power * rest, 0.693147181f, power);
}

// sum_i exp(x_i - most) with its maximum; over no x at all (-FLT_MAX, 0).
struct Softmax {
    float most, sum;

    __device__ void add(float x) {
        const float e = exp_negative(-fabsf(x - most));
        sum = x > most ? fmaf(sum, e, 1.f) : sum + e;
        most = fmaxf(most, x);
    }
    // +inf - +inf makes the sum NaN, as it must be.
    __device__ void add(const Softmax& other) {
        const float both = fmaxf(most, other.most);
        sum = sum * exp_negative(most - both) + other.sum * exp_negative(other.most - both);
        most = both;
    }
};

// Where a thread stands in its block's tile. Threads next to each other are next to each other in memory: positions
// (32 of them, 8 memories) if these come last, else memories (a power of two up to 32).
template <bool kPositionsLast>
struct Tile {
    static constexpr int kMemoryLanes = 8;  // of the layout with positions last

    __device__ static int memory_lane() { return kPositionsLast ? threadIdx.y : threadIdx.x; }
    __device__ static int memory_lanes() { return kPositionsLast ? blockDim.y : blockDim.x; }
    __device__ static int position_lane() { return kPositionsLast ? threadIdx.x : threadIdx.y; }
    __device__ static int position_lanes() { return kPositionsLast ? blockDim.x : blockDim.y; }

    // Over the memory lanes of this thread's position; the same value in all of them.
    __device__ static float sum_over_memories(float value) {
        if (kPositionsLast) {
            __shared__ float values[kMemoryLanes][32];
            __syncthreads();
            values[threadIdx.y][threadIdx.x] = value;
            __syncthreads();
            value = 0.f;
            for (int i = 0; i < kMemoryLanes; i++) value += values[i][threadIdx.x];
        } else {
            for (int width = blockDim.x / 2; width > 0; width /= 2) value += __shfl_xor_sync(kAllLanes, value, width);
        }
        return value;
    }

    // Over the position lanes of this thread's memory; right where position_lane() is 0.
    __device__ static float sum_over_positions(float value) {
        if (kPositionsLast) {
            value = sum_of_warp(value);
        } else {
            __shared__ float values[kThreads];
            __syncthreads();
            values[threadIdx.y * blockDim.x + threadIdx.x] = value;
            __syncthreads();
            for (int i = 1; i < blockDim.y && threadIdx.y == 0; i++) value += values[i * blockDim.x + threadIdx.x];
        }
        return value;
    }

    __device__ static Softmax join_positions(Softmax value) {
        if (kPositionsLast) {
            for (int width = 16; width > 0; width /= 2) {
                const float most = __shfl_xor_sync(kAllLanes, value.most, width);
                const float sum = __shfl_xor_sync(kAllLanes, value.sum, width);
                value.add(Softmax{most, sum});
            }
        } else {
            __shared__ Softmax values[kThreads];
            __syncthreads();
            values[threadIdx.y * blockDim.x + threadIdx.x] = value;
            __syncthreads();
            for (int i = 1; i < blockDim.y && threadIdx.y == 0; i++) value.add(values[i * blockDim.x + threadIdx.x]);
        }
        return value;
    }
};

// What a block works on: positions [first, last) of map b, and the address of its element (s, n).
template <bool kPositionsLast>
struct Part {
    const DoubleNorm d;
    long b, split, first, last, origin;

    __device__ explicit Part(const DoubleNorm& sizes) : d(sizes) {
        b = blockIdx.x / d.splits;
        split = blockIdx.x % d.splits;
        const long each = (d.positions + d.splits - 1) / d.splits;
        first = split * each;
        last = min(first + each, d.positions);
        const long head = b % d.heads;
        origin = (b - head) * d.memories * d.positions + head * d.memories;
    }
    __device__ long at(long s, long n) const {
        return origin + (kPositionsLast ? s * d.positions + n : n * d.heads * d.memories + s);
    }
};

// Maximum and sum of each memory over the positions of a split: partial (B, S, splits).
template <bool kPositionsLast, int R, class T>
__global__ void __launch_bounds__(kThreads, 2)
double_norm_statistics(DoubleNorm sizes, const T* __restrict__ x, Softmax* __restrict__ partial) {
    using Lanes = Tile<kPositionsLast>;
    const Part<kPositionsLast> part(sizes);
    const int lanes = Lanes::memory_lanes();
    const long memory = static_cast<long>(blockIdx.y) * lanes * R + Lanes::memory_lane();
    Softmax rows[R];
    for (int r = 0; r < R; r++) rows[r] = Softmax{-FLT_MAX, 0.f};
    for (long n = part.first + Lanes::position_lane(); n < part.last; n += Lanes::position_lanes()) {
        #pragma unroll
        for (int r = 0; r < R; r++)
            if (memory + r * lanes < sizes.memories)
                rows[r].add(static_cast<float>(x[part.at(memory + r * lanes, n)]));
    }
    for (int r = 0; r < R; r++) {
        const Softmax row = Lanes::join_positions(rows[r]);
        const long s = memory + r * lanes;
        if (Lanes::position_lane() == 0 && s < sizes.memories)
            partial[(part.b * sizes.memories + s) * sizes.splits + part.split] = row;
    }
}

// A warp for each memory: partial (B S, splits) -> its maximum and 1 / sum. NaN where there is no softmax: a NaN or
// +inf made the sum NaN, and with every position masked it is 0 and a becomes 0 * inf.
__global__ void double_norm_join(long rows, long splits, const Softmax* __restrict__ partial,
                                 Softmax* __restrict__ joined) {
    const long row = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    Softmax value{-FLT_MAX, 0.f};
    for (long i = threadIdx.x % 32; i < splits; i += 32) value.add(partial[row * splits + i]);
    value = Tile<true>::join_positions(value);
    if (threadIdx.x % 32 == 0) joined[row] = Softmax{value.most, __fdiv_rn(1.f, value.sum)};
}

// y, and the denominators eps + sum_s a[s, n] for the gradient.
template <bool kPositionsLast, int R, class T>
__global__ void __launch_bounds__(kThreads, 2)
double_norm_apply(DoubleNorm sizes, float eps, const T* __restrict__ x, const Softmax* __restrict__ statistics,
                  T* __restrict__ y, float* __restrict__ denominators) {
    using Lanes = Tile<kPositionsLast>;
    const Part<kPositionsLast> part(sizes);
    const int lanes = Lanes::memory_lanes();
    const Softmax* row = statistics + part.b * sizes.memories;
    for (long start = part.first; start < part.last; start += Lanes::position_lanes()) {
        const long n = start + Lanes::position_lane();
        float a[R], sum = 0.f;
        const auto load = [&](long memory) {
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const long s = memory + r * lanes;
                a[r] = 0.f;
                if (s < sizes.memories && n < part.last)
                    a[r] = exp_negative(static_cast<float>(x[part.at(s, n)]) - row[s].most) * row[s].sum;
            }
        };
        for (long memory = Lanes::memory_lane(); memory < sizes.memories; memory += lanes * R) {
            load(memory);
            #pragma unroll
            for (int r = 0; r < R; r++) sum += a[r];
        }
        const float total = eps + Lanes::sum_over_memories(sum), scale = __fdiv_rn(1.f, total);
        for (long memory = Lanes::memory_lane(); memory < sizes.memories; memory += lanes * R) {
            if (sizes.memories > lanes * R) load(memory);  // else the tile is still in registers
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const long s = memory + r * lanes;
                if (s < sizes.memories && n < part.last) y[part.at(s, n)] = static_cast<T>(a[r] * scale);
            }
        }
        if (Lanes::memory_lane() == 0 && n < part.last) denominators[part.b * sizes.positions + n] = total;
    }
}

// dots[n] = sum_s g y, and for each memory the sum of u = y (g - dots) over the positions of a split.
template <bool kPositionsLast, int R, class T>
__global__ void __launch_bounds__(kThreads, R < 32 ? 2 : 1)
double_norm_gradient_sums(DoubleNorm sizes, const T* __restrict__ y, const T* __restrict__ g, float* __restrict__ dots,
                          float* __restrict__ partial) {
    using Lanes = Tile<kPositionsLast>;
    const Part<kPositionsLast> part(sizes);
    const int lanes = Lanes::memory_lanes();
    for (long group = 0; group < sizes.memories; group += lanes * R) {
        const long memory = group + Lanes::memory_lane();
        float sums[R];
        for (int r = 0; r < R; r++) sums[r] = 0.f;
        for (long start = part.first; start < part.last; start += Lanes::position_lanes()) {
            const long n = start + Lanes::position_lane();
            const bool inside = n < part.last;
            float out[R], grad[R];
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const long s = memory + r * lanes;
                out[r] = grad[r] = 0.f;
                if (s < sizes.memories && inside) {
                    out[r] = static_cast<float>(y[part.at(s, n)]);
                    grad[r] = static_cast<float>(g[part.at(s, n)]);
                }
            }
            float dot = 0.f;
            if (group == 0) {
                #pragma unroll
                for (int r = 0; r < R; r++) dot += out[r] * grad[r];
                for (long s = memory + lanes * R; s < sizes.memories && inside; s += lanes)  // beyond the registers
                    dot += static_cast<float>(y[part.at(s, n)]) * static_cast<float>(g[part.at(s, n)]);
                dot = Lanes::sum_over_memories(dot);
                if (Lanes::memory_lane() == 0 && inside) dots[part.b * sizes.positions + n] = dot;
            } else if (inside) {
                dot = dots[part.b * sizes.positions + n];
            }
            #pragma unroll
            for (int r = 0; r < R; r++) sums[r] += out[r] * (grad[r] - dot);
        }
        for (int r = 0; r < R; r++) {
            const float sum = Lanes::sum_over_positions(sums[r]);
            const long s = memory + r * lanes;
            if (Lanes::position_lane() == 0 && s < sizes.memories)
                partial[(part.b * sizes.memories + s) * sizes.splits + part.split] = sum;
        }
        __syncthreads();  // the next group reads dots that other threads wrote
    }
}

// A warp for each row of partial (rows, splits): its sum.
__global__ void double_norm_join_sums(long rows, long splits, const float* __restrict__ partial,
                                      float* __restrict__ sums) {
    const long row = (static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    float sum = 0.f;
    for (long i = threadIdx.x % 32; i < splits; i += 32) sum += partial[row * splits + i];
    sum = Tile<true>::sum_over_positions(sum);
    if (threadIdx.x % 32 == 0) sums[row] = sum;
}

// dx = y (g - dots[n] - d[n] sums[s])
template <bool kPositionsLast, int R, class T>
__global__ void __launch_bounds__(kThreads, 2)
double_norm_gradient_apply(DoubleNorm sizes, const T* __restrict__ y, const T* __restrict__ g,
                           const float* __restrict__ denominators, const float* __restrict__ dots,
                           const float* __restrict__ sums, T* __restrict__ dx) {
    using Lanes = Tile<kPositionsLast>;
    const Part<kPositionsLast> part(sizes);
    const int lanes = Lanes::memory_lanes();
    const float* row = sums + part.b * sizes.memories;
    const long memory = static_cast<long>(blockIdx.y) * lanes * R + Lanes::memory_lane();
    for (long n = part.first + Lanes::position_lane(); n < part.last; n += Lanes::position_lanes()) {
        const float dot = dots[part.b * sizes.positions + n], total = denominators[part.b * sizes.positions + n];
        #pragma unroll
        for (int r = 0; r < R; r++) {
            const long s = memory + r * lanes;
            if (s >= sizes.memories) continue;
            const long i = part.at(s, n);
            dx[i] = static_cast<T>(static_cast<float>(y[i]) * (static_cast<float>(g[i]) - dot - total * row[s]));
        }
    }
}

// Calls launch(layout, R, block): a block of these threads with R registers each holds all memories, if these are at most 256.
template <class Launch>
void for_layout(const DoubleNorm& d, const Launch& launch) {
    int lanes = Tile<true>::kMemoryLanes;
    dim3 block(32, lanes);
    if (!d.positions_last) {
        for (lanes = 1; lanes < 32 && lanes < d.memories; lanes *= 2) {}
        block = dim3(lanes, kThreads / lanes);
    }
    const auto with = [&](auto positions_last) {
        if (d.memories <= lanes * 2) launch(positions_last, std::integral_constant<int, 2>(), block);
        else if (d.memories <= lanes * 8) launch(positions_last, std::integral_constant<int, 8>(), block);
        else if (d.memories <= lanes * 16) launch(positions_last, std::integral_constant<int, 16>(), block);
        else launch(positions_last, std::integral_constant<int, 32>(), block);
    };
    if (d.positions_last) with(std::true_type());
    else with(std::false_type());
}

// The grid of the passes in which a block need not hold all memories.
template <bool kPositionsLast>
dim3 grouped(const DoubleNorm& d, dim3 block) {
    const long each = (kPositionsLast ? block.y : block.x) * kFewMemories;
    return dim3(static_cast<unsigned>(d.batch * d.splits), static_cast<unsigned>((d.memories + each - 1) / each));
}

inline unsigned blocks_of_warps(long rows) {
    return static_cast<unsigned>((rows + kThreads / 32 - 1) / (kThreads / 32));
}

// workspace: 2 B S (splits + 1) floats
template <class T>
void double_norm_forward(const DoubleNorm& d, float eps, const T* x, T* y, float* denominators, float* workspace) {
    const long rows = d.batch * d.memories;
    Softmax* const joined = reinterpret_cast<Softmax*>(workspace);
    Softmax* const partial = joined + rows;
    const unsigned parts = static_cast<unsigned>(d.batch * d.splits);
    for_layout(d, [&](auto last, auto registers, dim3 block) {
        constexpr bool kLast = decltype(last)::value;
        constexpr int kRegisters = decltype(registers)::value;
        double_norm_statistics<kLast, kFewMemories><<<grouped<kLast>(d, block), block>>>(d, x, partial);
        double_norm_join<<<blocks_of_warps(rows), kThreads>>>(rows, d.splits, partial, joined);
        double_norm_apply<kLast, kRegisters><<<parts, block>>>(d, eps, x, joined, y, denominators);
    });
}

// workspace: B S (splits + 1) + B N floats
template <class T>
void double_norm_backward(const DoubleNorm& d, const T* y, const float* denominators, const T* g, T* dx,
                          float* workspace) {
    const long rows = d.batch * d.memories;
    float* const sums = workspace;
    float* const partial = sums + rows;
    float* const dots = partial + rows * d.splits;
    const unsigned parts = static_cast<unsigned>(d.batch * d.splits);
    for_layout(d, [&](auto last, auto registers, dim3 block) {
        constexpr bool kLast = decltype(last)::value;
        constexpr int kRegisters = decltype(registers)::value;
        double_norm_gradient_sums<kLast, kRegisters><<<parts, block>>>(d, y, g, dots, partial);
        double_norm_join_sums<<<blocks_of_warps(rows), kThreads>>>(rows, d.splits, partial, sums);
        double_norm_gradient_apply<kLast, kFewMemories><<<grouped<kLast>(d, block), block>>>(
            d, y, g, denominators, dots, sums, dx);
    });
}

}  // namespace jea
