// The kernels of double_norm.cuh for maps (N, heads, S): a position's memories stand side by side.
#pragma once
#include "attention/double_norm_statistics.cuh"

namespace jea {

// How a block stands on its rows: so many lanes on a position, each with kHeld of its memories, in vectors of V.
template <int M, int V>
struct Rows {
    static constexpr int kLanes = M / V < 32 ? M / V : 32;
    static constexpr int kVectors = M / V / kLanes;
    static constexpr int kHeld = kVectors * V;
    static constexpr int kPositions = kThreads / kLanes;  // side by side

    // Positions of a thread whose loads, from so many arrays, are under way together.
    template <int kArrays>
    static constexpr int kAtOnce = kHeld * kArrays <= 4 ? 8 : kHeld * kArrays <= 8 ? 4 : kHeld * kArrays <= 16 ? 2 : 1;
    __device__ static int lane() { return threadIdx.x % kLanes; }
    __device__ static int row() { return threadIdx.x / kLanes; }
    __device__ static int memory(int group, int vector) { return group + (vector * kLanes + lane()) * V; }

    template <class T>
    __device__ static T sum_over_lanes(T value) {
        #pragma unroll
        for (int distance = kLanes / 2; distance > 0; distance /= 2)
            value += __shfl_xor_sync(kAllLanes, value, distance);
        return value;
    }
};

__device__ inline long map_origin(const DoubleNorm& d, long map) {
    const long head = map % d.heads;
    return (map - head) * d.memories * d.positions + head * d.memories;
}

// Joins values[vector][i] of the threads that hold the same memories, over all rows of the block, into
// partial (maps, S, splits).
template <class Shape, int V, int kVectors, class A>
__device__ void join_over_rows(const DoubleNorm& d, long map, int split, int group, A (&values)[kVectors][V],
                               A* partial) {
    __shared__ A of_warps[kWarps][Shape::kLanes * V];
    const int warp = threadIdx.x / 32;
    #pragma unroll
    for (int r = 0; r < kVectors; r++) {
        #pragma unroll
        for (int v = 0; v < V; v++) {
            #pragma unroll
            for (int distance = Shape::kLanes; distance < 32; distance *= 2) values[r][v].add_lane(distance);
            if (threadIdx.x % 32 < Shape::kLanes) of_warps[warp][Shape::lane() * V + v] = values[r][v];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < Shape::kLanes * V; i += kThreads) {
            A all = of_warps[0][i];
            for (int w = 1; w < kWarps; w++) all.add(of_warps[w][i]);
            const int s = group + r * Shape::kLanes * V + i;
            if (s < d.memories) partial[(map * d.memories + s) * d.splits + split] = all;
        }
        __syncthreads();
    }
}

template <int M, int V, class T>
__global__ void __launch_bounds__(kThreads)
memories_last_statistics(DoubleNorm d, const T* __restrict__ x, Softmax* __restrict__ partial) {
    using Shape = Rows<M, V>;
    constexpr int kAtOnce = V > 1 ? 4 : 8;
    const long map = blockIdx.x / d.splits;
    const int split = blockIdx.x % d.splits, step = d.heads * d.memories;
    const int first = split * d.each, last = min(first + d.each, d.positions);
    const int group = blockIdx.y * Shape::kLanes * V, memory = Shape::memory(group, 0);
    const T* const from = x + map_origin(d, map) + memory;
    Softmax rows[1][V];
    for (int v = 0; v < V; v++) rows[0][v] = nothing<Softmax>();
    for (int start = first + Shape::row(); start < last; start += Shape::kPositions * kAtOnce) {
        Vector<T, V> values[kAtOnce];
        #pragma unroll
        for (int u = 0; u < kAtOnce; u++) {
            const int n = start + u * Shape::kPositions;
            values[u] = memory < d.memories && n < last ? load<V>(from + n * step) : filled<V, T>(-INFINITY);
        }
        #pragma unroll
        for (int v = 0; v < V; v++) {
            float column[kAtOnce];
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) column[u] = static_cast<float>(values[u].of[v]);
            rows[0][v].template add_all<T>(column);
        }
    }
    join_over_rows<Shape>(d, map, split, group, rows, partial);
}

// y, and the denominators eps + sum_s a[s, n] for the gradient.
template <int M, int V, class T>
__global__ void __launch_bounds__(kThreads, Rows<M, V>::kHeld <= 8 ? 3 : 2)
memories_last_apply(DoubleNorm d, int parts, float eps, const T* __restrict__ x, const Softmax* __restrict__ partial,
                    const Softmax* __restrict__ joined, T* __restrict__ y, float* __restrict__ denominators) {
    using Shape = Rows<M, V>;
    constexpr int kAtOnce = Shape::template kAtOnce<1>, kTile = Shape::kPositions * kAtOnce;
    __shared__ Softmax own[kJoinedByBlocks];
    const Share share(d, parts, kTile);
    const int step = d.heads * d.memories;
    const Softmax* const row = joined_rows(d, share.map, partial, joined, own);
    x += map_origin(d, share.map);
    y += map_origin(d, share.map);
    denominators += share.map * d.positions;
    Softmax statistics[Shape::kHeld];
    const auto take_statistics = [&](int group) {
        #pragma unroll
        for (int i = 0; i < Shape::kHeld; i++) {
            const int s = Shape::memory(group, i / V) + i % V;
            statistics[i] = s < d.memories ? row[s] : Softmax{0.f, 0.f};
        }
    };
    take_statistics(0);
    for (int start = share.first; start < share.last; start += kTile) {
        float a[kAtOnce][Shape::kHeld], sums[kAtOnce] = {};
        const auto take = [&](int group) {
            Vector<T, V> values[kAtOnce][Shape::kVectors];
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + Shape::row() + u * Shape::kPositions;
                #pragma unroll
                for (int r = 0; r < Shape::kVectors; r++) {
                    const int s = Shape::memory(group, r);
                    values[u][r] = s < d.memories && n < share.last ? load<V>(x + n * step + s)
                                                                    : filled<V, T>(-INFINITY);
                }
            }
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                #pragma unroll
                for (int i = 0; i < Shape::kHeld; i++)
                    a[u][i] = exp_for<T>(static_cast<float>(values[u][i / V].of[i % V]) - statistics[i].most)
                              * statistics[i].sum;
            }
        };
        for (int group = 0; group < d.memories; group += M) {
            if (d.memories > M) take_statistics(group);
            take(group);
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                #pragma unroll
                for (int i = 0; i < Shape::kHeld; i++) sums[u] += a[u][i];
            }
        }
        #pragma unroll
        for (int u = 0; u < kAtOnce; u++) {
            const int n = start + Shape::row() + u * Shape::kPositions;
            const float total = eps + Shape::sum_over_lanes(sums[u]);
            if (Shape::lane() == 0 && n < share.last) denominators[n] = total;
            sums[u] = __fdiv_rn(1.f, total);
        }
        for (int group = 0; group < d.memories; group += M) {
            if (d.memories > M) {  // else the tile is still in registers
                take_statistics(group);
                take(group);
            }
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + Shape::row() + u * Shape::kPositions;
                #pragma unroll
                for (int r = 0; r < Shape::kVectors; r++) {
                    const int s = Shape::memory(group, r);
                    Vector<T, V> values;
                    #pragma unroll
                    for (int v = 0; v < V; v++) values.of[v] = static_cast<T>(a[u][r * V + v] * sums[u]);
                    if (s < d.memories && n < share.last) store<V>(y + n * step + s, values);
                }
            }
        }
    }
}

// dots[n] = sum_s g y, and for each memory the sum of u = y (g - dots) over the positions of a split.
template <int M, int V, class T>
__global__ void __launch_bounds__(kThreads, Rows<M, V>::kHeld <= 8 ? 3 : 2)
memories_last_gradient_sums(DoubleNorm d, const T* __restrict__ y, const T* __restrict__ g, float* __restrict__ dots,
                            Sum* __restrict__ partial) {
    using Shape = Rows<M, V>;
    constexpr int kAtOnce = Shape::template kAtOnce<2>;
    const long map = blockIdx.x / d.splits;
    const int split = blockIdx.x % d.splits, step = d.heads * d.memories;
    const int first = split * d.each, last = min(first + d.each, d.positions);
    y += map_origin(d, map);
    g += map_origin(d, map);
    dots += map * d.positions;
    for (int group = 0; group < d.memories; group += M) {
        Sum sums[Shape::kVectors][V];
        for (int i = 0; i < Shape::kHeld; i++) sums[i / V][i % V] = nothing<Sum>();
        for (int start = first; start < last; start += Shape::kPositions * kAtOnce) {
            Vector<T, V> out[kAtOnce][Shape::kVectors], grad[kAtOnce][Shape::kVectors];
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + Shape::row() + u * Shape::kPositions;
                #pragma unroll
                for (int r = 0; r < Shape::kVectors; r++) {
                    const int s = Shape::memory(group, r), at = n * step + s;
                    const bool inside = s < d.memories && n < last;
                    out[u][r] = inside ? load<V>(y + at) : filled<V, T>(0.f);
                    grad[u][r] = inside ? load<V>(g + at) : filled<V, T>(0.f);
                }
            }
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + Shape::row() + u * Shape::kPositions;
                const auto product = [](T a, T b) { return static_cast<float>(a) * static_cast<float>(b); };
                float dot = 0.f;
                if (group == 0) {
                    #pragma unroll
                    for (int i = 0; i < Shape::kHeld; i++)
                        dot += product(out[u][i / V].of[i % V], grad[u][i / V].of[i % V]);
                    // Those beyond the registers.
                    for (int s = M + Shape::lane(); s < d.memories && n < last; s += Shape::kLanes)
                        dot += product(y[n * step + s], g[n * step + s]);
                    dot = Shape::sum_over_lanes(dot);
                    if (Shape::lane() == 0 && n < last) dots[n] = dot;
                } else if (n < last) {
                    dot = dots[n];
                }
                #pragma unroll
                for (int i = 0; i < Shape::kHeld; i++)
                    sums[i / V][i % V].sum += static_cast<float>(out[u][i / V].of[i % V])
                                              * (static_cast<float>(grad[u][i / V].of[i % V]) - dot);
            }
        }
        join_over_rows<Shape>(d, map, split, group, sums, partial);  // has barriers: the next group reads others' dots
    }
}

// dx = y (g - dots[n] - d[n] sums[s])
template <int M, int V, class T>
__global__ void __launch_bounds__(kThreads, Rows<M, V>::kHeld <= 8 ? 3 : 2)
memories_last_gradient(DoubleNorm d, int parts, const T* __restrict__ y, const T* __restrict__ g,
                       const float* __restrict__ denominators, const float* __restrict__ dots,
                       const Sum* __restrict__ partial, const Sum* __restrict__ joined, T* __restrict__ dx) {
    using Shape = Rows<M, V>;
    constexpr int kAtOnce = Shape::template kAtOnce<2>, kTile = Shape::kPositions * kAtOnce;
    __shared__ Sum own[kJoinedByBlocks];
    const Share share(d, parts, kTile);
    const int step = d.heads * d.memories;
    const Sum* const row = joined_rows(d, share.map, partial, joined, own);
    y += map_origin(d, share.map);
    g += map_origin(d, share.map);
    dx += map_origin(d, share.map);
    dots += share.map * d.positions;
    denominators += share.map * d.positions;
    for (int group = 0; group < d.memories; group += M) {
        float sums[Shape::kHeld];
        #pragma unroll
        for (int i = 0; i < Shape::kHeld; i++) {
            const int s = Shape::memory(group, i / V) + i % V;
            sums[i] = s < d.memories ? row[s].sum : 0.f;
        }
        for (int start = share.first + Shape::row(); start < share.last; start += kTile) {
            Vector<T, V> out[kAtOnce][Shape::kVectors], grad[kAtOnce][Shape::kVectors];
            float dot[kAtOnce], total[kAtOnce];
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + u * Shape::kPositions;
                #pragma unroll
                for (int r = 0; r < Shape::kVectors; r++) {
                    const int s = Shape::memory(group, r), at = n * step + s;
                    const bool inside = s < d.memories && n < share.last;
                    out[u][r] = inside ? load<V>(y + at) : filled<V, T>(0.f);
                    grad[u][r] = inside ? load<V>(g + at) : filled<V, T>(0.f);
                }
                dot[u] = n < share.last ? dots[n] : 0.f;
                total[u] = n < share.last ? denominators[n] : 0.f;
            }
            #pragma unroll
            for (int u = 0; u < kAtOnce; u++) {
                const int n = start + u * Shape::kPositions;
                #pragma unroll
                for (int r = 0; r < Shape::kVectors; r++) {
                    const int s = Shape::memory(group, r);
                    Vector<T, V> values;
                    #pragma unroll
                    for (int v = 0; v < V; v++)
                        values.of[v] = static_cast<T>(
                            static_cast<float>(out[u][r].of[v])
                            * (static_cast<float>(grad[u][r].of[v]) - dot[u] - total[u] * sums[r * V + v]));
                    if (s < d.memories && n < share.last) store<V>(dx + n * step + s, values);
                }
            }
        }
    }
}

template <int M>
struct MemoriesLast {
    // Calls launch(V): the widest vectors that the memories are made of, or single elements.
    template <class T, class Launch>
    static void with_vectors(const DoubleNorm& d, bool all_aligned, const Launch& launch) {
        constexpr int kWide = kWidest<T> < M ? kWidest<T> : M;
        if (all_aligned && d.memories % kWide == 0) launch(std::integral_constant<int, kWide>());
        else launch(std::integral_constant<int, 1>());
    }

    template <class T>
    static void statistics(const DoubleNorm& d, const T* x, Softmax* partial) {
        with_vectors<T>(d, aligned(x), [&](auto wide) {
            constexpr int V = decltype(wide)::value;
            const dim3 grid(static_cast<unsigned>(d.batch * d.splits), blocks_of(d.memories, Rows<M, V>::kLanes * V));
            memories_last_statistics<M, V, T><<<grid, kThreads>>>(d, x, partial);
        });
    }
    template <class T>
    static void apply(const DoubleNorm& d, float eps, const T* x, const Softmax* partial, const Softmax* joined, T* y,
                      float* denominators) {
        with_vectors<T>(d, aligned(x) && aligned(y), [&](auto wide) {
            constexpr int V = decltype(wide)::value;
            const int parts = parts_of_map(d, Rows<M, V>::kPositions * Rows<M, V>::template kAtOnce<1>);
            memories_last_apply<M, V, T><<<static_cast<unsigned>(d.batch * parts), kThreads>>>(
                d, parts, eps, x, partial, joined, y, denominators);
        });
    }
    template <class T>
    static void gradient_sums(const DoubleNorm& d, const T* y, const T* g, float* dots, Sum* partial) {
        with_vectors<T>(d, aligned(y) && aligned(g), [&](auto wide) {
            memories_last_gradient_sums<M, decltype(wide)::value, T>
                <<<static_cast<unsigned>(d.batch * d.splits), kThreads>>>(d, y, g, dots, partial);
        });
    }
    template <class T>
    static void gradient(const DoubleNorm& d, const T* y, const T* g, const float* denominators, const float* dots,
                         const Sum* partial, const Sum* joined, T* dx) {
        with_vectors<T>(d, aligned(y) && aligned(g) && aligned(dx), [&](auto wide) {
            constexpr int V = decltype(wide)::value;
            const int parts = parts_of_map(d, Rows<M, V>::kPositions * Rows<M, V>::template kAtOnce<2>);
            memories_last_gradient<M, V, T><<<static_cast<unsigned>(d.batch * parts), kThreads>>>(
                d, parts, y, g, denominators, dots, partial, joined, dx);
        });
    }
};

}  // namespace jea
