// BatchNorm over the rows of a matrix (rows, channels), with an optional summand and ReLU, and its gradient, on CUDA.
// See batch_norm.py.
//
// A thread keeps to a vector of neighbouring channels and walks over rows, several loads under way at once. Forward:
// sums of each split of the rows, these joined per channel, the result; x is read twice and y written once, and the
// second time from the last row to the first, so that what the second-level cache still holds is not fetched again.
// Backward likewise. No atomics.
// T, the type of x, y, the summand and their gradients, is float, __half or __nv_bfloat16; all else is float.
#pragma once
#include <type_traits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "common/vectors.cuh"

namespace jea {

struct BatchNormNhwc {
    long rows;
    int channels;
    bool training, relu;
    double eps;
    int splits, each;  // of the rows, in the launches that sum over them, and the rows of one
};

constexpr int kWarps = kThreads / 32;
constexpr int kRowsAtOnce = 4;

// What y and dx are made of, a number of each kind for each channel.
struct Factors {
    float* scale;
    float* shift;
};
struct GradientFactors {
    float* scale;
    float* offset;
    float* slope;
};

// Where a thread stands: at vector `lane` of a group of channels, on row `row` of those that a block takes at a time.
template <int V>
struct Spot {
    int lanes, lane, row, rows;
    int channel;
    bool inside;

    __device__ Spot(int lanes, int channels) : lanes(lanes) {
        lane = threadIdx.x % lanes;
        row = threadIdx.x / lanes;
        rows = kThreads / lanes;
        channel = (blockIdx.y * lanes + lane) * V;
        inside = channel < channels;
        if (!inside) channel = 0;  // reads what another thread reads, and writes nothing
    }
    // Calls use(row, number) for all rows of [first, last) that are this thread's: `number` of them at once, `rows` apart.
    // Whole tiles without a condition, so that the compiler puts all loads of one before the first use.
    template <class Use>
    __device__ void walk(long first, long last, const Use& use) const {
        long at = first + row;
        for (; at + (kRowsAtOnce - 1) * rows < last; at += kRowsAtOnce * rows)
            use(at, std::integral_constant<int, kRowsAtOnce>());
        for (; at < last; at += rows) use(at, std::integral_constant<int, 1>());
    }
    // Sums `values` over the rows of the block; afterwards thread i < lanes V has the sum of the group's channel i.
    __device__ float over_rows(float (&values)[V]) const {
        __shared__ float of_warps[kWarps][32 * V];
        __syncthreads();
        #pragma unroll
        for (int v = 0; v < V; v++) {
            for (int distance = lanes; distance < 32; distance *= 2)
                values[v] += __shfl_xor_sync(kAllLanes, values[v], distance);
            if (threadIdx.x % 32 < lanes) of_warps[threadIdx.x / 32][lane * V + v] = values[v];
        }
        __syncthreads();
        float sum = 0.f;
        if (threadIdx.x < lanes * V)
            for (int w = 0; w < kWarps; w++) sum += of_warps[w][threadIdx.x];
        return sum;
    }
    // The channel of that sum, or `channels` where this thread has none.
    __device__ int channel_of_sum(int channels) const {
        const int c = blockIdx.y * lanes * V + threadIdx.x;
        return threadIdx.x < lanes * V && c < channels ? c : channels;
    }
};

// dy, or 0 where the ReLU cut.
template <bool kRelu, class T>
__device__ float masked(T y, T dy) {
    return kRelu && !(static_cast<float>(y) > 0.f) ? 0.f : static_cast<float>(dy);
}

template <int V>
__device__ void channels_of(const float* from, int channel, float (&values)[V]) {
    #pragma unroll
    for (int v = 0; v < V; v++) values[v] = from[channel + v];
}

// The vectors of N rows, `apart` elements from one to the next.
template <int N, int V, class T>
__device__ void load_rows(const T* from, long apart, Vector<T, V> (&values)[N]) {
    #pragma unroll
    for (int u = 0; u < N; u++) values[u] = load<V>(from + u * apart);
}

// partial: three planes (splits, channels): a value near the mean, the sum of the differences from it, and of their
// squares.
template <int V, class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_nhwc_statistics(BatchNormNhwc d, int lanes, const T* __restrict__ x, float* __restrict__ partial) {
    const Spot<V> spot(lanes, d.channels);
    const long first = static_cast<long>(blockIdx.x) * d.each, last = min(first + d.each, d.rows);
    x += spot.channel;
    const long apart = static_cast<long>(spot.rows) * d.channels;
    const Vector<T, V> pivots = load<V>(x + first * d.channels);
    float pivot[V], sums[V] = {}, squares[V] = {};
    #pragma unroll
    for (int v = 0; v < V; v++) pivot[v] = static_cast<float>(pivots.of[v]);
    spot.walk(first, last, [&](long row, auto number) {
        constexpr int N = decltype(number)::value;
        Vector<T, V> values[N];
        load_rows(x + row * d.channels, apart, values);
        #pragma unroll
        for (int i = 0; i < N * V; i++) {
            const int v = i % V;
            const float away = static_cast<float>(values[i / V].of[v]) - pivot[v];
            sums[v] += away;
            squares[v] += away * away;
        }
    });
    const long plane = static_cast<long>(d.splits) * d.channels;
    float* const to = partial + static_cast<long>(blockIdx.x) * d.channels;
    if (spot.row == 0 && spot.inside) {
        #pragma unroll
        for (int v = 0; v < V; v++) to[spot.channel + v] = pivot[v];
    }
    const int c = spot.channel_of_sum(d.channels);
    const float sum = spot.over_rows(sums), square = spot.over_rows(squares);
    if (c < d.channels) {
        to[plane + c] = sum;
        to[2 * plane + c] = square;
    }
}

// The sums of two values over the parts of a block of (32 channels, kWarps parts), in the threads of part 0.
__device__ inline void over_parts(double& a, double& b) {
    __shared__ double values[2][kWarps][32];
    values[0][threadIdx.y][threadIdx.x] = a;
    values[1][threadIdx.y][threadIdx.x] = b;
    __syncthreads();
    a = b = 0.;
    for (int i = 0; i < kWarps && threadIdx.y == 0; i++) {
        a += values[0][i][threadIdx.x];
        b += values[1][i][threadIdx.x];
    }
}

// Each channel's mean and biased variance, joined or given, and the factors of y. Sums in float64, all from one value
// near the mean.
__global__ void batch_norm_nhwc_join(BatchNormNhwc d, const float* __restrict__ partial,
                                     const float* __restrict__ weight, const float* __restrict__ bias,
                                     const float* __restrict__ running_mean, const float* __restrict__ running_variance,
                                     float* __restrict__ means, float* __restrict__ variances, Factors factors) {
    const int c = blockIdx.x * 32 + threadIdx.x, parts = d.training ? d.splits : 0;
    const long plane = static_cast<long>(d.splits) * d.channels;
    const double pivot = parts > 0 && c < d.channels ? partial[c] : 0.f;
    double sum = 0., squares = 0.;
    #pragma unroll 4
    for (int i = threadIdx.y; i < parts && c < d.channels; i += kWarps) {
        const float* const of = partial + static_cast<long>(i) * d.channels + c;
        const double apart = of[0] - pivot, own = of[plane];
        const long count = min(d.rows - static_cast<long>(i) * d.each, static_cast<long>(d.each));
        sum += own + count * apart;
        squares += of[2 * plane] + apart * (2. * own + count * apart);
    }
    over_parts(sum, squares);
    if (threadIdx.y > 0 || c >= d.channels) return;
    double mean = running_mean[c], variance = running_variance[c];
    if (d.training) {
        const double away = sum / d.rows;
        mean = pivot + away;
        variance = squares / d.rows - away * away;
        variance = variance < 0. ? 0. : variance;  // NaN stays
    }
    means[c] = static_cast<float>(mean);
    variances[c] = static_cast<float>(variance);
    const double scale = weight[c] / sqrt(variance + d.eps);
    factors.scale[c] = static_cast<float>(scale);
    // With the part of the mean that float32 does not hold.
    factors.shift[c] = static_cast<float>(bias[c] - (mean - means[c]) * scale);
}

template <int V, bool kResidual, class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_nhwc_apply(BatchNormNhwc d, int lanes, int each, const T* __restrict__ x, const float* __restrict__ means,
                      Factors factors, const T* __restrict__ residual, T* __restrict__ y) {
    const Spot<V> spot(lanes, d.channels);
    float mean[V], scale[V], shift[V];
    channels_of(means, spot.channel, mean);
    channels_of(factors.scale, spot.channel, scale);
    channels_of(factors.shift, spot.channel, shift);
    const long first = static_cast<long>(gridDim.x - 1 - blockIdx.x) * each, last = min(first + each, d.rows);
    const long apart = static_cast<long>(spot.rows) * d.channels;
    spot.walk(first, last, [&](long row, auto number) {
        constexpr int N = decltype(number)::value;
        const long at = row * d.channels + spot.channel;
        Vector<T, V> values[N], summands[N];
        load_rows(x + at, apart, values);
        if (kResidual) load_rows(residual + at, apart, summands);
        #pragma unroll
        for (int u = 0; u < N; u++) {
            #pragma unroll
            for (int v = 0; v < V; v++) {
                float value = (static_cast<float>(values[u].of[v]) - mean[v]) * scale[v] + shift[v];
                if (kResidual) value += static_cast<float>(summands[u].of[v]);
                values[u].of[v] = static_cast<T>(d.relu && value <= 0.f ? 0.f : value);  // NaN is handed on
            }
            if (spot.inside) store<V>(y + at + u * apart, values[u]);
        }
    });
}

// partial: two planes (splits, channels): the sums of g and of g (x - mean). g is dy, or dy where y > 0 (relu).
template <int V, bool kRelu, class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_nhwc_gradient_sums(BatchNormNhwc d, int lanes, const T* __restrict__ x, const T* __restrict__ y,
                              const T* __restrict__ dy, const float* __restrict__ means, float* __restrict__ partial) {
    const Spot<V> spot(lanes, d.channels);
    const long first = static_cast<long>(blockIdx.x) * d.each, last = min(first + d.each, d.rows);
    float mean[V], sums[V] = {}, products[V] = {};
    channels_of(means, spot.channel, mean);
    const long apart = static_cast<long>(spot.rows) * d.channels;
    spot.walk(first, last, [&](long row, auto number) {
        constexpr int N = decltype(number)::value;
        const long at = row * d.channels + spot.channel;
        Vector<T, V> in[N], out[N], gradient[N];
        load_rows(x + at, apart, in);
        if (kRelu) load_rows(y + at, apart, out);
        load_rows(dy + at, apart, gradient);
        #pragma unroll
        for (int i = 0; i < N * V; i++) {
            const int u = i / V, v = i % V;
            const float g = masked<kRelu>(out[u].of[v], gradient[u].of[v]);
            sums[v] += g;
            products[v] += g * (static_cast<float>(in[u].of[v]) - mean[v]);
        }
    });
    float* const to = partial + static_cast<long>(blockIdx.x) * d.channels;
    const int c = spot.channel_of_sum(d.channels);
    const float sum = spot.over_rows(sums), product = spot.over_rows(products);
    if (c < d.channels) {
        to[c] = sum;
        to[static_cast<long>(d.splits) * d.channels + c] = product;
    }
}

__global__ void batch_norm_nhwc_gradient_join(BatchNormNhwc d, const float* __restrict__ partial,
                                              const float* __restrict__ weight, const float* __restrict__ variances,
                                              float* __restrict__ dweight, float* __restrict__ dbias,
                                              GradientFactors factors) {
    const int c = blockIdx.x * 32 + threadIdx.x;
    double sum = 0., product = 0.;
    #pragma unroll 4
    for (int i = threadIdx.y; i < d.splits && c < d.channels; i += kWarps) {
        const float* const of = partial + static_cast<long>(i) * d.channels + c;
        sum += of[0];
        product += of[static_cast<long>(d.splits) * d.channels];
    }
    over_parts(sum, product);
    if (threadIdx.y > 0 || c >= d.channels) return;
    const double inverse = 1. / sqrt(variances[c] + d.eps), mean_of = d.training ? 1. / d.rows : 0.;
    dbias[c] = static_cast<float>(sum);
    dweight[c] = static_cast<float>(product * inverse);
    factors.scale[c] = static_cast<float>(weight[c] * inverse);
    factors.offset[c] = static_cast<float>(sum * mean_of);
    factors.slope[c] = static_cast<float>(product * mean_of * inverse * inverse);
}

// dx = scale (g - mean(g) - (x - mean) mean(g (x - mean)) / variance); g itself is the gradient of the summand.
template <int V, bool kRelu, class T>
__global__ void __launch_bounds__(kThreads)
batch_norm_nhwc_gradient(BatchNormNhwc d, int lanes, int each, const T* __restrict__ x, const T* __restrict__ y,
                         const T* __restrict__ dy, const float* __restrict__ means, GradientFactors factors,
                         T* __restrict__ dx, T* __restrict__ dresidual) {
    const Spot<V> spot(lanes, d.channels);
    float mean[V], scale[V], offset[V], slope[V];
    channels_of(means, spot.channel, mean);
    channels_of(factors.scale, spot.channel, scale);
    channels_of(factors.offset, spot.channel, offset);
    channels_of(factors.slope, spot.channel, slope);
    const long first = static_cast<long>(gridDim.x - 1 - blockIdx.x) * each, last = min(first + each, d.rows);
    const long apart = static_cast<long>(spot.rows) * d.channels;
    spot.walk(first, last, [&](long row, auto number) {
        constexpr int N = decltype(number)::value;
        const long at = row * d.channels + spot.channel;
        Vector<T, V> in[N], out[N], gradient[N];
        load_rows(x + at, apart, in);
        if (kRelu) load_rows(y + at, apart, out);
        load_rows(dy + at, apart, gradient);
        #pragma unroll
        for (int u = 0; u < N; u++) {
            #pragma unroll
            for (int v = 0; v < V; v++) {
                const float g = masked<kRelu>(out[u].of[v], gradient[u].of[v]);
                const float away = static_cast<float>(in[u].of[v]) - mean[v];
                gradient[u].of[v] = static_cast<T>(g);
                in[u].of[v] = static_cast<T>(scale[v] * (g - offset[v] - away * slope[v]));
            }
            if (!spot.inside) continue;
            if (dresidual) store<V>(dresidual + at + u * apart, gradient[u]);
            store<V>(dx + at + u * apart, in[u]);
        }
    });
}

// How the rows and channels are given to blocks: lanes of V channels each, and rows for the launches that do not sum.
struct NhwcPlan {
    int lanes;
    unsigned groups, blocks;
    int each;

    NhwcPlan(const BatchNormNhwc& d, int vector) : lanes(1) {
        while (lanes < 32 && lanes * vector < d.channels) lanes *= 2;
        groups = blocks_of(d.channels, lanes * vector);
        const long tile = static_cast<long>(kThreads / lanes) * kRowsAtOnce, tiles = (d.rows + tile - 1) / tile;
        const long wanted = 2112 / groups, parts = wanted < 1 ? 1 : wanted < tiles ? wanted : tiles;
        each = static_cast<int>((tiles + parts - 1) / parts * tile);
        blocks = blocks_of(d.rows, each);
    }
};

// Calls launch(V): the widest vectors that the channels are made of, or single elements.
template <class T, class Launch>
void with_channel_vectors(const BatchNormNhwc& d, bool all_aligned, const Launch& launch) {
    if (all_aligned && d.channels % kWidest<T> == 0) launch(std::integral_constant<int, kWidest<T>>());
    else launch(std::integral_constant<int, 1>());
}

// workspace: channels (2 + 3 splits) floats
template <class T>
void batch_norm_forward(const BatchNormNhwc& d, const T* x, const float* weight, const float* bias,
                        const float* running_mean, const float* running_variance, const T* residual, T* y, float* means,
                        float* variances, float* workspace) {
    const Factors factors{workspace, workspace + d.channels};
    float* const partial = workspace + 2 * d.channels;
    with_channel_vectors<T>(d, aligned(x) && aligned(residual) && aligned(y), [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const NhwcPlan plan(d, V);
        const dim3 sums(d.splits, plan.groups), whole(plan.blocks, plan.groups);
        if (d.training) batch_norm_nhwc_statistics<V, T><<<sums, kThreads>>>(d, plan.lanes, x, partial);
        batch_norm_nhwc_join<<<blocks_of(d.channels, 32), dim3(32, kWarps)>>>(
            d, partial, weight, bias, running_mean, running_variance, means, variances, factors);
        const auto apply = [&](auto with) {
            batch_norm_nhwc_apply<V, decltype(with)::value, T><<<whole, kThreads>>>(d, plan.lanes, plan.each, x, means,
                                                                                    factors, residual, y);
        };
        if (residual) apply(std::true_type());
        else apply(std::false_type());
    });
}

// The gradients of x, weight, bias and, unless null, the summand. workspace: channels (3 + 2 splits) floats
template <class T>
void batch_norm_backward(const BatchNormNhwc& d, const T* x, const T* y, const T* dy, const float* weight,
                         const float* means, const float* variances, T* dx, float* dweight, float* dbias, T* dresidual,
                         float* workspace) {
    const GradientFactors factors{workspace, workspace + d.channels, workspace + 2 * d.channels};
    float* const partial = workspace + 3 * d.channels;
    const bool all_aligned = aligned(x) && aligned(y) && aligned(dy) && aligned(dx) && aligned(dresidual);
    with_channel_vectors<T>(d, all_aligned, [&](auto wide) {
        constexpr int V = decltype(wide)::value;
        const NhwcPlan plan(d, V);
        const dim3 sums(d.splits, plan.groups), whole(plan.blocks, plan.groups);
        const auto launch = [&](auto relu) {
            constexpr bool kRelu = decltype(relu)::value;
            batch_norm_nhwc_gradient_sums<V, kRelu, T><<<sums, kThreads>>>(d, plan.lanes, x, y, dy, means, partial);
            batch_norm_nhwc_gradient_join<<<blocks_of(d.channels, 32), dim3(32, kWarps)>>>(
                d, partial, weight, variances, dweight, dbias, factors);
            batch_norm_nhwc_gradient<V, kRelu, T><<<whole, kThreads>>>(d, plan.lanes, plan.each, x, y, dy, means,
                                                                       factors, dx, dresidual);
        };
        if (d.relu) launch(std::true_type());
        else launch(std::false_type());
    });
}

}  // namespace jea
