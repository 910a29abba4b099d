// The kernels of double_norm.cuh for maps (S, N): a memory's positions stand side by side.
//
// Where N is odd, rows begin at any address. The statistics take whole vectors all the same, cut at the row's ends; the
// other kernels, whose threads need the same position of every row, then take single elements, more of them at once.
#pragma once
#include "attention/double_norm_statistics.cuh"

namespace jea {

constexpr int kOfThread = 4;  // positions, as one vector of 4 or 4 elements 32 apart
constexpr int kTilePositions = 32 * kOfThread;

// A warp for each split of a row: `each` elements from the vector on that holds the row's first.
template <int V, class T>
__global__ void __launch_bounds__(kThreads)
positions_last_statistics(DoubleNorm d, const T* __restrict__ x, Softmax* __restrict__ partial) {
    constexpr int kAtOnce = 4;
    const long unit = static_cast<long>(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (unit >= d.batch * d.memories * d.splits) return;
    const long row = unit / d.splits, split = unit % d.splits, begin = row * d.positions;
    const long from = begin / V * V + split * d.each, to = min(from + d.each, begin + d.positions);
    Softmax all = nothing<Softmax>();
    for (long start = from + threadIdx.x % 32 * V; start < to; start += 32 * V * kAtOnce) {
        Vector<T, V> values[kAtOnce];
        #pragma unroll
        for (int u = 0; u < kAtOnce; u++) {
            const long at = start + u * 32 * V;
            if (at >= begin && at + V <= to) {
                values[u] = load<V>(x + at);
            } else {
                #pragma unroll
                for (int v = 0; v < V; v++)
                    values[u].of[v] = at + v >= begin && at + v < to ? x[at + v] : static_cast<T>(-INFINITY);
            }
        }
        float column[kAtOnce * V];
        #pragma unroll
        for (int i = 0; i < kAtOnce * V; i++) column[i] = static_cast<float>(values[i / V].of[i % V]);
        all.template add_all<T>(column);
    }
    for (int distance = 16; distance > 0; distance /= 2) all.add_lane(distance);
    if (threadIdx.x % 32 == 0) partial[unit] = all;
}

// A tile of rows x positions: a warp has every kWarps-th row, a lane kOfThread positions of it. V: 4 or 1.
template <int V>
struct Tile {
    __device__ static int lane() { return threadIdx.x % 32; }
    __device__ static int warp() { return threadIdx.x / 32; }
    // Where value i of this thread stands in the tile.
    __device__ static int position(int i) { return (i / V * 32 + lane()) * V + i % V; }

    // The kOfThread values of the row, as far as they are before `last`; the others are `otherwise`.
    template <class T>
    __device__ static void take(const T* row, int start, int last, float otherwise, float (&values)[kOfThread]) {
        #pragma unroll
        for (int i = 0; i < kOfThread; i += V) {
            const int n = start + position(i);
            const Vector<T, V> some = n < last ? load<V>(row + n) : filled<V, T>(otherwise);
            #pragma unroll
            for (int v = 0; v < V; v++) values[i + v] = static_cast<float>(some.of[v]);
        }
    }
    template <class T>
    __device__ static void put(T* row, int start, int last, const float (&values)[kOfThread]) {
        #pragma unroll
        for (int i = 0; i < kOfThread; i += V) {
            Vector<T, V> some;
            #pragma unroll
            for (int v = 0; v < V; v++) some.of[v] = static_cast<T>(values[i + v]);
            const int n = start + position(i);
            if (n < last) store<V>(row + n, some);
        }
    }
    // The sums of all warps for thread number < kTilePositions, by position; others get nothing. Has a barrier inside.
    __device__ static float sum_over_warps(const float (&values)[kOfThread],
                                           float (&of_warps)[kWarps][kTilePositions]) {
        #pragma unroll
        for (int i = 0; i < kOfThread; i++) of_warps[warp()][position(i)] = values[i];
        __syncthreads();
        float sum = 0.f;
        if (threadIdx.x < kTilePositions)
            for (int w = 0; w < kWarps; w++) sum += of_warps[w][threadIdx.x];
        return sum;
    }
};

// y, and the denominators eps + sum_s a[s, n] for the gradient.
template <int R, int V, class T>
__global__ void __launch_bounds__(kThreads, R <= 8 ? 3 : 2)
positions_last_apply(DoubleNorm d, int parts, float eps, const T* __restrict__ x, const Softmax* __restrict__ partial,
                     const Softmax* __restrict__ joined, T* __restrict__ y, float* __restrict__ denominators) {
    using At = Tile<V>;
    __shared__ Softmax own[kJoinedByBlocks];
    __shared__ float of_warps[kWarps][kTilePositions], scales[kTilePositions];
    const Share share(d, parts, kTilePositions);
    const long origin = share.map * d.memories * d.positions;
    const Softmax* const statistics = joined_rows(d, share.map, partial, joined, own);
    x += origin;
    y += origin;
    denominators += share.map * d.positions;
    for (int start = share.first; start < share.last; start += kTilePositions) {
        float a[R][kOfThread], sums[kOfThread] = {};
        const auto take = [&](int group) {
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + At::warp() + r * kWarps;
                At::take(x + s * d.positions, start, s < d.memories ? share.last : 0, -INFINITY, a[r]);
            }
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + At::warp() + r * kWarps;
                const Softmax row = s < d.memories ? statistics[s] : Softmax{0.f, 0.f};
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) a[r][i] = exp_for<T>(a[r][i] - row.most) * row.sum;
            }
        };
        for (int group = 0; group < d.memories; group += R * kWarps) {
            take(group);
            #pragma unroll
            for (int i = 0; i < R * kOfThread; i++) sums[i % kOfThread] += a[i / kOfThread][i % kOfThread];
        }
        const float total = eps + At::sum_over_warps(sums, of_warps);
        if (threadIdx.x < kTilePositions) {
            scales[threadIdx.x] = __fdiv_rn(1.f, total);
            if (start + static_cast<int>(threadIdx.x) < share.last) denominators[start + threadIdx.x] = total;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < kOfThread; i++) sums[i] = scales[At::position(i)];
        for (int group = 0; group < d.memories; group += R * kWarps) {
            if (d.memories > R * kWarps) take(group);  // else the tile is still in registers
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + At::warp() + r * kWarps;
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) a[r][i] *= sums[i];
                At::put(y + s * d.positions, start, s < d.memories ? share.last : 0, a[r]);
            }
        }
    }
}

// dots[n] = sum_s g y, and for each memory the sum of u = y (g - dots) over the positions of a split.
template <int R, int V, class T>
__global__ void __launch_bounds__(kThreads, 2)
positions_last_gradient_sums(DoubleNorm d, const T* __restrict__ y, const T* __restrict__ g, float* __restrict__ dots,
                             Sum* __restrict__ partial) {
    using At = Tile<V>;
    __shared__ float of_warps[kWarps][kTilePositions], shared_dots[kTilePositions];
    const long map = blockIdx.x / d.splits, origin = map * d.memories * d.positions;
    const int split = blockIdx.x % d.splits, first = split * d.each, last = min(first + d.each, d.positions);
    y += origin;
    g += origin;
    dots += map * d.positions;
    for (int group = 0; group < d.memories; group += R * kWarps) {
        Sum sums[R];
        for (int r = 0; r < R; r++) sums[r] = nothing<Sum>();
        for (int start = first; start < last; start += kTilePositions) {
            float out[R][kOfThread], grad[R][kOfThread], dot[kOfThread] = {};
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + At::warp() + r * kWarps, row = s * d.positions;
                At::take(y + row, start, s < d.memories ? last : 0, 0.f, out[r]);
                At::take(g + row, start, s < d.memories ? last : 0, 0.f, grad[r]);
            }
            if (group == 0) {
                #pragma unroll
                for (int i = 0; i < R * kOfThread; i++)
                    dot[i % kOfThread] += out[i / kOfThread][i % kOfThread] * grad[i / kOfThread][i % kOfThread];
                for (int s = R * kWarps + At::warp(); s < d.memories; s += kWarps) {  // beyond the registers
                    float more[kOfThread], of_gradient[kOfThread];
                    At::take(y + s * d.positions, start, last, 0.f, more);
                    At::take(g + s * d.positions, start, last, 0.f, of_gradient);
                    #pragma unroll
                    for (int i = 0; i < kOfThread; i++) dot[i] += more[i] * of_gradient[i];
                }
                const float all = At::sum_over_warps(dot, of_warps);
                if (threadIdx.x < kTilePositions) {
                    shared_dots[threadIdx.x] = all;
                    if (start + static_cast<int>(threadIdx.x) < last) dots[start + threadIdx.x] = all;
                }
                __syncthreads();
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) dot[i] = shared_dots[At::position(i)];
            } else {
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) {
                    const int n = start + At::position(i);
                    dot[i] = n < last ? dots[n] : 0.f;
                }
            }
            #pragma unroll
            for (int r = 0; r < R; r++) {
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) sums[r].sum += out[r][i] * (grad[r][i] - dot[i]);
            }
        }
        #pragma unroll
        for (int r = 0; r < R; r++) {
            for (int distance = 16; distance > 0; distance /= 2) sums[r].add_lane(distance);
            const int s = group + At::warp() + r * kWarps;
            if (At::lane() == 0 && s < d.memories) partial[(map * d.memories + s) * d.splits + split] = sums[r];
        }
        __syncthreads();  // the next group reads dots that other threads wrote
    }
}

// dx = y (g - dots[n] - d[n] sums[s])
template <int V, class T>
__global__ void __launch_bounds__(kThreads, 3)
positions_last_gradient(DoubleNorm d, int parts, const T* __restrict__ y, const T* __restrict__ g,
                        const float* __restrict__ denominators, const float* __restrict__ dots,
                        const Sum* __restrict__ partial, const Sum* __restrict__ joined, T* __restrict__ dx) {
    using At = Tile<V>;
    constexpr int R = 4;
    __shared__ Sum own[kJoinedByBlocks];
    const Share share(d, parts, kTilePositions);
    const long origin = share.map * d.memories * d.positions;
    const Sum* const sums = joined_rows(d, share.map, partial, joined, own);
    y += origin;
    g += origin;
    dx += origin;
    dots += share.map * d.positions;
    denominators += share.map * d.positions;
    for (int start = share.first; start < share.last; start += kTilePositions) {
        float dot[kOfThread], total[kOfThread];
        #pragma unroll
        for (int i = 0; i < kOfThread; i++) {
            const int n = start + At::position(i);
            dot[i] = n < share.last ? dots[n] : 0.f;
            total[i] = n < share.last ? denominators[n] : 0.f;
        }
        for (int group = At::warp(); group < d.memories; group += R * kWarps) {
            float out[R][kOfThread], grad[R][kOfThread];
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + r * kWarps, row = s * d.positions;
                At::take(y + row, start, s < d.memories ? share.last : 0, 0.f, out[r]);
                At::take(g + row, start, s < d.memories ? share.last : 0, 0.f, grad[r]);
            }
            #pragma unroll
            for (int r = 0; r < R; r++) {
                const int s = group + r * kWarps;
                const float sum = s < d.memories ? sums[s].sum : 0.f;
                #pragma unroll
                for (int i = 0; i < kOfThread; i++) out[r][i] *= grad[r][i] - dot[i] - total[i] * sum;
                At::put(dx + s * d.positions, start, s < d.memories ? share.last : 0, out[r]);
            }
        }
    }
}

template <int M>
struct PositionsLast {
    static constexpr int kRows = M <= 128 ? M / kWarps : 8;  // of a warp, in registers
    static constexpr int kGradientRows = M <= 64 ? M / kWarps : 8;

    template <class Launch>
    static void with_vectors(const DoubleNorm& d, bool all_aligned, const Launch& launch) {
        if (all_aligned && d.positions % kOfThread == 0) launch(std::integral_constant<int, kOfThread>());
        else launch(std::integral_constant<int, 1>());
    }

    template <class T>
    static void statistics(const DoubleNorm& d, const T* x, Softmax* partial) {
        const unsigned blocks = blocks_of(d.batch * d.memories * d.splits, kWarps);
        if (aligned(x)) positions_last_statistics<kWidest<T>, T><<<blocks, kThreads>>>(d, x, partial);
        else positions_last_statistics<1, T><<<blocks, kThreads>>>(d, x, partial);
    }
    template <class T>
    static void apply(const DoubleNorm& d, float eps, const T* x, const Softmax* partial, const Softmax* joined, T* y,
                      float* denominators) {
        const int parts = parts_of_map(d, kTilePositions);
        with_vectors(d, aligned(x) && aligned(y), [&](auto wide) {
            positions_last_apply<kRows, decltype(wide)::value, T><<<static_cast<unsigned>(d.batch * parts), kThreads>>>(
                d, parts, eps, x, partial, joined, y, denominators);
        });
    }
    template <class T>
    static void gradient_sums(const DoubleNorm& d, const T* y, const T* g, float* dots, Sum* partial) {
        with_vectors(d, aligned(y) && aligned(g), [&](auto wide) {
            positions_last_gradient_sums<kGradientRows, decltype(wide)::value, T>
                <<<static_cast<unsigned>(d.batch * d.splits), kThreads>>>(d, y, g, dots, partial);
        });
    }
    template <class T>
    static void gradient(const DoubleNorm& d, const T* y, const T* g, const float* denominators, const float* dots,
                         const Sum* partial, const Sum* joined, T* dx) {
        const int parts = parts_of_map(d, kTilePositions);
        with_vectors(d, aligned(y) && aligned(g) && aligned(dx), [&](auto wide) {
            positions_last_gradient<decltype(wide)::value, T><<<static_cast<unsigned>(d.batch * parts), kThreads>>>(
                d, parts, y, g, denominators, dots, partial, joined, dx);
        });
    }
};

}  // namespace jea
