// Cross entropy per position of logits (batch, classes, positions), and its gradient. See cross_entropy.py.
//
// The classes of a tile of positions stay in the processor's cache; nothing of the logits' size is kept for the gradient.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include "common/exp.h"
#include "training/cross_entropy_sizes.h"

namespace jea {

// maxima and inverses (batch, positions) keep max_c x and 1 / sum_c exp(x - max) for the gradient.
inline void cross_entropy_forward(const CrossEntropy& d, const float* x, const int* labels, float* losses,
                                  float* maxima, float* inverses) {
    const long C = d.classes, N = d.positions;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < d.tiles(); t++) {
            const long first = t * d.kTile, count = std::min(d.kTile, N - first), place = b * N + first;
            const float* in = x + b * C * N + first;
            float most[d.kTile], sum[d.kTile], total[d.kTile];
            uint32_t bits[d.kTile];
            for (long i = 0; i < count; i++) most[i] = in[i], sum[i] = total[i] = 0.f, bits[i] = 0;
            for (long c = 0; c < C; c++) {
                const float* row = in + c * N;
                #pragma omp simd
                for (long i = 0; i < count; i++) {
                    most[i] = std::max(most[i], row[i]);
                    bits[i] = std::max(bits[i], softmax_bits(row[i]));
                }
            }
            for (long c = 0; c < C; c++) {
                const float* row = in + c * N;
                #pragma omp simd
                for (long i = 0; i < count; i++) {
                    sum[i] += exp_negative(row[i] - most[i]);
                    total[i] += row[i] - most[i];
                }
            }
            for (long i = 0; i < count; i++) {
                const int label = labels[place + i];
                float loss = 0.f;
                if (label != d.ignored) {
                    const bool valid = label >= 0 && label < C && bits[i] < kNoSoftmax;
                    const float target = valid ? in[label * N + i] - most[i] : 0.f;
                    loss = std::log(sum[i]) - (1.f - d.smoothing) * target;
                    if (d.smoothing > 0.f) loss -= d.smoothing / C * total[i];
                    if (!valid) loss = from_bits(0x7fc00000u);
                }
                losses[place + i] = loss;
                maxima[place + i] = most[i];
                inverses[place + i] = 1.f / sum[i];
            }
        }
}

// dx = g (softmax(x) - target distribution), 0 at ignored positions.
inline void cross_entropy_backward(const CrossEntropy& d, const float* x, const int* labels, const float* maxima,
                                   const float* inverses, const float* g, float* dx) {
    const long C = d.classes, N = d.positions;
    const float off = d.smoothing / C, on = 1.f - d.smoothing;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < d.tiles(); t++) {
            const long first = t * d.kTile, count = std::min(d.kTile, N - first), place = b * N + first;
            const float* in = x + b * C * N + first;
            float* out = dx + b * C * N + first;
            float weight[d.kTile];
            for (long i = 0; i < count; i++) weight[i] = labels[place + i] == d.ignored ? 0.f : g[place + i];
            for (long c = 0; c < C; c++) {
                const float *row = in + c * N, *most = maxima + place, *inverse = inverses + place;
                float* to = out + c * N;
                #pragma omp simd
                for (long i = 0; i < count; i++)
                    to[i] = weight[i] * (exp_negative(row[i] - most[i]) * inverse[i] - off);
            }
            for (long i = 0; i < count; i++) {
                const int label = labels[place + i];
                if (label >= 0 && label < C && label != d.ignored) out[label * N + i] -= weight[i] * on;
            }
        }
}

}  // namespace jea
