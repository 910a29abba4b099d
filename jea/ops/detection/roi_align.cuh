// RoIAlign over several feature levels on CUDA. See roi_align.py; roi_align.h defines the same for the CPU.
//
// The gradient is summed in whole numbers, whose sum does not depend on the order of the atomics: the same input gives
// the same bits. Their unit is 2^-40 of the largest |dy|, finer than float32 has it.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

constexpr int kLevels = 8;

struct RoiAlign {
    long batch, channels, regions, out_h, out_w, levels;
    long heights[kLevels], widths[kLevels];
    float scales[kLevels];
    long sampling;
    bool aligned;
    long block;
    bool plain;
};

struct Pointers { const float* of[kLevels]; };

typedef unsigned long long Fixed;  // a signed whole number, as atomicAdd takes it

// Along one axis: where the samples of bin p lie.
struct Axis {
    float low, bin;
    long samples, size;

    __device__ Axis(float from, float to, long bins, long cells, long sampling, bool aligned) : low(from), size(cells) {
        float extent = __fadd_rn(to, -from);
        if (!aligned && extent < 1.f) extent = 1.f;
        bin = __fdiv_rn(extent, static_cast<float>(bins));
        const float wanted = ceilf(bin);
        samples = sampling > 0 ? sampling : wanted < 1.f ? 0 : wanted < 1e6f ? static_cast<long>(wanted) : 1000000;
    }

    // The two cells of a sample and the share of the second; false where the sample lies outside.
    __device__ bool sample(long p, long i, long& first, long& second, float& share) const {
        const float within = __fdiv_rn(__fmul_rn(static_cast<float>(i) + .5f, bin), static_cast<float>(samples));
        float at = __fadd_rn(__fadd_rn(low, __fmul_rn(static_cast<float>(p), bin)), within);
        if (!(at >= -1.f && at <= static_cast<float>(size))) return false;
        at = fmaxf(at, 0.f);
        first = static_cast<long>(at);
        if (first >= size - 1) {
            first = second = size - 1;
            share = 0.f;
        } else {
            second = first + 1;
            share = at - static_cast<float>(first);
        }
        return true;
    }
};

__device__ inline Axis axis_of(const RoiAlign& d, const float* roi, long level, bool rows) {
    const float scale = d.scales[level], offset = d.aligned ? .5f : 0.f;
    const float from = __fadd_rn(__fmul_rn(roi[rows ? 2 : 1], scale), -offset);
    const float to = __fadd_rn(__fmul_rn(roi[rows ? 4 : 3], scale), -offset);
    return Axis(from, to, rows ? d.out_h : d.out_w, (rows ? d.heights : d.widths)[level], d.sampling, d.aligned);
}

// What the thread of an entry of y stands at: region, channel and bin, in the order in which y lies.
struct Entry {
    long r, c, p, q;

    __device__ Entry(const RoiAlign& d, long i) {
        const long block = d.plain ? 1 : d.block, within = i % block;
        i /= block;
        q = i % d.out_w;
        p = i / d.out_w % d.out_h;
        i /= d.out_w * d.out_h;
        c = i % (d.channels / block) * block + within;
        r = i / (d.channels / block);
    }
};

// The first cell of a channel of a picture; cells of it are `block` apart.
__device__ inline long plane_of(const RoiAlign& d, long picture, long c, long cells) {
    return (picture * (d.channels / d.block) + c / d.block) * cells * d.block + c % d.block;
}

// A thread per entry of y.
__global__ void __launch_bounds__(kThreads)
roi_align_entries(RoiAlign d, Pointers features, const float* __restrict__ rois, const int* __restrict__ levels,
                  float* __restrict__ y) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= d.regions * d.channels * d.out_h * d.out_w) return;
    const Entry e(d, i);
    const long level = levels[e.r], picture = static_cast<long>(rois[5 * e.r]);
    float sum = 0.f;
    if (level >= 0 && level < d.levels && picture >= 0 && picture < d.batch) {
        const Axis rows = axis_of(d, rois + 5 * e.r, level, true), columns = axis_of(d, rois + 5 * e.r, level, false);
        const float* plane = features.of[level] + plane_of(d, picture, e.c, rows.size * columns.size);
        const long step = d.block, line = columns.size * step;
        for (long a = 0; a < rows.samples; a++) {
            long top, bottom, left, right;
            float down, along;
            if (!rows.sample(e.p, a, top, bottom, down)) continue;
            for (long b = 0; b < columns.samples; b++) {
                if (!columns.sample(e.q, b, left, right, along)) continue;
                const float *upper = plane + top * line, *lower = plane + bottom * line;
                sum += (1.f - down) * ((1.f - along) * upper[left * step] + along * upper[right * step]) +
                       down * ((1.f - along) * lower[left * step] + along * lower[right * step]);
            }
        }
        const long count = rows.samples * columns.samples;
        sum = __fdiv_rn(sum, static_cast<float>(count > 1 ? count : 1));
    }
    y[i] = sum;
}

inline void roi_align(const RoiAlign& d, const float* const* features, const float* rois, const int* levels, float* y,
                      float*) {
    Pointers pointers;
    for (long l = 0; l < d.levels; l++) pointers.of[l] = features[l];
    const long count = d.regions * d.channels * d.out_h * d.out_w;
    roi_align_entries<<<blocks_of(count, kThreads), kThreads>>>(d, pointers, rois, levels, y);
}

// One block: the largest |dy|.
__global__ void __launch_bounds__(kThreads) largest(const float* __restrict__ dy, float* __restrict__ most, long n) {
    __shared__ float values[kThreads];
    float own = 0.f;
    for (long i = threadIdx.x; i < n; i += kThreads) own = fmaxf(own, fabsf(dy[i]));
    values[threadIdx.x] = own;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = fmaxf(values[threadIdx.x], values[threadIdx.x + half]);
    }
    if (threadIdx.x == 0) *most = values[0];
}

constexpr float kUnits = 1099511627776.f;  // 2^40

__global__ void __launch_bounds__(kThreads) clear_sums(Fixed* sums, long n) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) sums[i] = 0;
}

__device__ inline void add(Fixed* to, float value) {
    atomicAdd(to, static_cast<Fixed>(static_cast<long long>(value * kUnits)));
}

// A thread per entry of dy; those of one level.
__global__ void __launch_bounds__(kThreads)
spread_entries(RoiAlign d, const float* __restrict__ dy, const float* __restrict__ rois, const int* __restrict__ levels,
               const float* __restrict__ most, Fixed* __restrict__ sums, long level) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= d.regions * d.channels * d.out_h * d.out_w) return;
    const Entry e(d, i);
    const long picture = static_cast<long>(rois[5 * e.r]);
    if (levels[e.r] != level || picture < 0 || picture >= d.batch || !(*most > 0.f)) return;
    const Axis rows = axis_of(d, rois + 5 * e.r, level, true), columns = axis_of(d, rois + 5 * e.r, level, false);
    const long count = rows.samples * columns.samples;
    const float value = __fdiv_rn(dy[i], *most * static_cast<float>(count > 1 ? count : 1));
    Fixed* plane = sums + plane_of(d, picture, e.c, rows.size * columns.size);
    const long step = d.block, line = columns.size * step;
    for (long a = 0; a < rows.samples; a++) {
        long top, bottom, left, right;
        float down, along;
        if (!rows.sample(e.p, a, top, bottom, down)) continue;
        for (long b = 0; b < columns.samples; b++) {
            if (!columns.sample(e.q, b, left, right, along)) continue;
            add(plane + top * line + left * step, value * (1.f - down) * (1.f - along));
            add(plane + top * line + right * step, value * (1.f - down) * along);
            add(plane + bottom * line + left * step, value * down * (1.f - along));
            add(plane + bottom * line + right * step, value * down * along);
        }
    }
}

__global__ void __launch_bounds__(kThreads)
to_floats(const Fixed* __restrict__ sums, const float* __restrict__ most, float* __restrict__ dx, long n) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= n) return;
    const double sum = static_cast<double>(static_cast<long long>(sums[i]));
    dx[i] = static_cast<float>(sum * (static_cast<double>(*most) / kUnits));
}

// scratch: 2 numbers for the largest |dy|, then 2 per entry of the largest level.
inline void roi_align_backward(const RoiAlign& d, const float* dy, const float* rois, const int* levels,
                               float* const* dfeatures, float* scratch) {
    const long count = d.regions * d.channels * d.out_h * d.out_w;
    Fixed* sums = reinterpret_cast<Fixed*>(scratch + 2);
    largest<<<1, kThreads>>>(dy, scratch, count);
    for (long l = 0; l < d.levels; l++) {
        const long size = d.batch * d.channels * d.heights[l] * d.widths[l];
        clear_sums<<<blocks_of(size, kThreads), kThreads>>>(sums, size);
        spread_entries<<<blocks_of(count, kThreads), kThreads>>>(d, dy, rois, levels, scratch, sums, l);
        to_floats<<<blocks_of(size, kThreads), kThreads>>>(sums, scratch, dfeatures[l], size);
    }
}

}  // namespace jea
