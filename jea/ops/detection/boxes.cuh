// Suppression of overlapping boxes and matching of boxes with ground truth on CUDA. See boxes.h, which defines the same
// functions for the CPU. Jittor compiles with --use_fast_math: what must be exact is written __fadd_rn, __fdiv_rn.
#pragma once
#include <climits>
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

// A float as an unsigned integer of the same order, with NaN above all.
__device__ inline unsigned order_of(float value) {
    const unsigned bits = static_cast<unsigned>(__float_as_int(value));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return UINT_MAX;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float area_of(const float* b) {
    return __fmul_rn(__fadd_rn(b[2], -b[0]), __fadd_rn(b[3], -b[1]));
}

__device__ inline float iou_of(const float* a, const float* b) {
    const float w = fmaxf(__fadd_rn(fminf(a[2], b[2]), -fmaxf(a[0], b[0])), 0.f);
    const float h = fmaxf(__fadd_rn(fminf(a[3], b[3]), -fmaxf(a[1], b[1])), 0.f);
    const float inter = __fmul_rn(w, h), whole = __fadd_rn(__fadd_rn(area_of(a), area_of(b)), -inter);
    return whole > 0.f ? __fdiv_rn(inter, whole) : 0.f;
}

// order (n,): the indices by falling score, of equals the first index first. A thread per box counts those before it.
__global__ void __launch_bounds__(kThreads)
rank_scores(const float* __restrict__ scores, int* __restrict__ order, long n) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= n) return;
    const unsigned own = order_of(scores[i]);
    long before = 0;
    for (long j = 0; j < n; j++) {
        const unsigned other = order_of(scores[j]);
        before += other > own || (other == own && j < i);
    }
    order[before] = static_cast<int>(i);
}

// gone (kThreads,): 1 where a box of the chunk overlaps one that stays. A block per box; kept[-1] is their number.
__global__ void __launch_bounds__(kThreads)
drop_chunk(const float* __restrict__ boxes, const int* __restrict__ groups, const int* __restrict__ order,
           const int* __restrict__ kept, const int* __restrict__ count, int* __restrict__ gone, long first, float threshold) {
    __shared__ int hit;
    const int box = order[first + blockIdx.x];
    if (threadIdx.x == 0) hit = 0;
    __syncthreads();
    for (long k = threadIdx.x; k < *count; k += kThreads) {
        const int other = kept[k];
        if (groups[other] == groups[box] && iou_of(boxes + 4 * other, boxes + 4 * box) > threshold) hit = 1;
    }
    __syncthreads();
    if (threadIdx.x == 0) gone[blockIdx.x] = hit;
}

// One block: those of the chunk that stay, among themselves, in their order.
__global__ void __launch_bounds__(kThreads)
keep_chunk(const float* __restrict__ boxes, const int* __restrict__ groups, const int* __restrict__ order,
           int* __restrict__ kept, int* __restrict__ count, const int* __restrict__ gone, long first, long chunk,
           float threshold) {
    __shared__ unsigned drops[kThreads][kThreads / 32];  // the later boxes of the chunk that each one would drop
    const long own = threadIdx.x;
    for (int word = 0; word < kThreads / 32; word++) drops[own][word] = 0;
    if (own < chunk) {
        const int box = order[first + own];
        for (long other = own + 1; other < chunk; other++) {
            const int later = order[first + other];
            if (groups[later] == groups[box] && iou_of(boxes + 4 * box, boxes + 4 * later) > threshold)
                drops[own][other / 32] |= 1u << other % 32;
        }
    }
    __syncthreads();
    if (own != 0) return;
    unsigned dropped[kThreads / 32] = {};
    int number = *count;
    for (long i = 0; i < chunk; i++) {
        if (gone[i] || dropped[i / 32] >> i % 32 & 1u) continue;
        kept[number++] = order[first + i];
        for (int word = 0; word < kThreads / 32; word++) dropped[word] |= drops[i][word];
    }
    *count = number;
}

__global__ void clear_kept(int* kept, int* count, long n) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) kept[i] = -1;
    if (i == 0) *count = 0;
}

// scratch: n + 1 + kThreads numbers. Chunk by chunk of the boxes, by falling score: memory grows with n alone.
inline void nms(const float* boxes, const float* scores, const int* groups, int* kept, float* scratch, long n,
                float threshold) {
    int *order = reinterpret_cast<int*>(scratch), *count = order + n, *gone = count + 1;
    clear_kept<<<blocks_of(n, kThreads), kThreads>>>(kept, count, n);
    rank_scores<<<blocks_of(n, kThreads), kThreads>>>(scores, order, n);
    for (long first = 0; first < n; first += kThreads) {
        const long chunk = n - first < kThreads ? n - first : kThreads;
        drop_chunk<<<static_cast<unsigned>(chunk), kThreads>>>(boxes, groups, order, kept, count, gone, first, threshold);
        keep_chunk<<<1, kThreads>>>(boxes, groups, order, kept, count, gone, first, chunk, threshold);
    }
}

struct Matching {
    float high, low;
    int rule;
    float least;
};

struct Qualities {
    const float *boxes, *truths, *quality;
    long n, count;

    __device__ float at(long truth, long box) const {
        return quality ? quality[truth * n + box] : iou_of(truths + 4 * truth, boxes + 4 * box);
    }
};

// most (count,): the largest quality of each truth. A block per truth.
__global__ void __launch_bounds__(kThreads) best_of_truths(Qualities q, float* __restrict__ most) {
    __shared__ float values[kThreads];
    float own = 0.f;
    for (long i = threadIdx.x; i < q.n; i += kThreads) own = fmaxf(own, q.at(blockIdx.x, i));
    values[threadIdx.x] = own;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = fmaxf(values[threadIdx.x], values[threadIdx.x + half]);
    }
    if (threadIdx.x == 0) most[blockIdx.x] = values[0];
}

__global__ void __launch_bounds__(kThreads)
match_each(Qualities q, const float* __restrict__ most, int* __restrict__ matches, float* __restrict__ best, Matching m) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= q.n) return;
    float high = q.at(0, i);
    int match = 0, given = -1;
    for (long t = 0; t < q.count; t++) {
        const float value = q.at(t, i);
        if (value > high) {
            high = value;
            match = static_cast<int>(t);
        }
        if (m.rule && value == most[t] && (m.rule == 1 || most[t] >= m.least)) given = static_cast<int>(t);
    }
    const bool sure = high >= m.high || (m.rule == 1 && given >= 0);
    matches[i] = m.rule == 2 && given >= 0 ? given : sure ? match : high < m.low ? -1 : -2;
    best[i] = high;
}

// scratch: count numbers.
inline void match_boxes(const float* boxes, const float* truths, const float* quality, int* matches, float* best,
                        float* scratch, long n, long count, const Matching& m) {
    const Qualities q{boxes, truths, quality, n, count};
    if (m.rule) best_of_truths<<<static_cast<unsigned>(count), kThreads>>>(q, scratch);
    match_each<<<blocks_of(n, kThreads), kThreads>>>(q, scratch, matches, best, m);
}

}  // namespace jea
