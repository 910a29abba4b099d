// Sigmoid focal loss on CUDA. See sigmoid_focal_loss.py; focal.h has the term, and the same functions for the CPU.
#pragma once
#include <cuda_runtime.h>
#ifndef __CUDACC__
#define __CUDACC__
#endif
#include "detection/focal.h"
#include "common/reduce.cuh"

namespace jea {

// A warp per row.
__global__ void __launch_bounds__(kThreads)
focal_rows(Focal d, const float* __restrict__ logits, const int* __restrict__ labels, float* __restrict__ loss) {
    const long row = static_cast<long>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (row >= d.rows) return;
    const int label = labels[row];
    float sum = 0.f, slope;
    for (long c = threadIdx.x % 32; c < d.classes && label > -2; c += 32)
        sum += focal_term(logits[row * d.classes + c], c == label, d.alpha, d.gamma, slope);
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) loss[row] = sum;
}

__global__ void __launch_bounds__(kThreads)
focal_slopes(Focal d, const float* __restrict__ logits, const int* __restrict__ labels, const float* __restrict__ dloss,
             float* __restrict__ dlogits) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= d.rows * d.classes) return;
    const long row = i / d.classes;
    float slope;
    focal_term(logits[i], i % d.classes == labels[row], d.alpha, d.gamma, slope);
    dlogits[i] = labels[row] > -2 ? dloss[row] * slope : 0.f;
}

inline void focal_loss(const Focal& d, const float* logits, const int* labels, float* loss) {
    focal_rows<<<blocks_of(d.rows, kThreads / 32), kThreads>>>(d, logits, labels, loss);
}

inline void focal_loss_backward(const Focal& d, const float* logits, const int* labels, const float* dloss,
                                float* dlogits) {
    focal_slopes<<<blocks_of(d.rows * d.classes, kThreads), kThreads>>>(d, logits, labels, dloss, dlogits);
}

}  // namespace jea
