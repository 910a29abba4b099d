// Double normalisation of a (S, N) or (N, S) matrix per batch entry, and its gradient. See double_norm.py.
//
// x is cut into tiles of positions. A tile is read from memory once: its own maxima, exponentials relative to them and
// their sums; then the tiles' statistics are joined; then each tile is rescaled and normalised per position.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include "exp.h"

namespace jea {

// One batch entry: element (s, n) of the map stands at s * stride_s + n * stride_n; one of the strides is 1.
// The memories are those of `groups` maps side by side (more than one only where the memories are last): the second
// step sums over each group's own.
struct DoubleNorm {
    long batch, memories, positions;
    bool positions_last;
    long groups = 1;

    long group() const { return memories / groups; }

    long tile() const {  // positions of a tile: about 64 kB, a multiple of 16
        const long fitting = 16384 / std::max(memories, 1L) / 16 * 16;
        return std::min(std::max(fitting, 16L), 4096L);
    }
    long tiles() const { return (positions + tile() - 1) / tile(); }
};

inline bool without_softmax(const float* x, long count) {
    uint32_t most = 0;
    #pragma omp simd reduction(max : most)
    for (long i = 0; i < count; i++) most = std::max(most, softmax_bits(x[i]));
    return most >= kNoSoftmax;
}

// Forward. denominators (batch, N, groups) keeps eps + sum_s a[s, n] for the gradient.
inline void double_norm_forward(const DoubleNorm& d, float eps, const float* x, float* y, float* denominators) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles(), G = d.groups, P = d.group();
    std::vector<float> maxima(d.batch * tiles * S), sums(maxima.size()), factors(maxima.size());
    std::vector<char> poisoned(d.batch * tiles * G);

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first);
            const float* in = x + b * S * N;
            float* out = y + b * S * N;
            float* tile_max = &maxima[(b * tiles + t) * S];
            float* tile_sum = &sums[(b * tiles + t) * S];
            char* poison = &poisoned[(b * tiles + t) * G];
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const float* row = in + s * N + first;
                    float* to = out + s * N + first;
                    poison[0] = poison[0] || without_softmax(row, count);
                    float most = -FLT_MAX;  // not -inf: a tile of masked positions must give zeros
                    #pragma omp simd reduction(max : most)
                    for (long n = 0; n < count; n++) most = row[n] > most ? row[n] : most;
                    float sum = 0.f;
                    #pragma omp simd reduction(+ : sum)
                    for (long n = 0; n < count; n++) {
                        const float e = exp_negative(row[n] - most);
                        to[n] = e;
                        sum += e;
                    }
                    tile_max[s] = most;
                    tile_sum[s] = sum;
                }
            } else {
                const float* rows = in + first * S;
                if (without_softmax(rows, count * S))
                    for (long i = 0; i < count * G; i++)
                        poison[i % G] = poison[i % G] || without_softmax(rows + i * P, P);
                std::fill(tile_max, tile_max + S, -FLT_MAX);
                for (long n = 0; n < count; n++) {
                    #pragma omp simd
                    for (long s = 0; s < S; s++) tile_max[s] = std::max(tile_max[s], rows[n * S + s]);
                }
                std::fill(tile_sum, tile_sum + S, 0.f);
                for (long n = 0; n < count; n++) {
                    float* to = out + (first + n) * S;
                    #pragma omp simd
                    for (long s = 0; s < S; s++) {
                        const float e = exp_negative(rows[n * S + s] - tile_max[s]);
                        to[s] = e;
                        tile_sum[s] += e;
                    }
                }
            }
        }

    // Softmax over all positions: e of tile t, times factors[t, s], is a.
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long g = 0; g < G; g++) {
            bool poison = false;
            for (long t = 0; t < tiles; t++) poison = poison || poisoned[(b * tiles + t) * G + g];
            for (long s = g * P; s < (g + 1) * P; s++) {
                float most = maxima[b * tiles * S + s];
                for (long t = 1; t < tiles; t++) most = std::max(most, maxima[(b * tiles + t) * S + s]);
                double sum = 0.;
                for (long t = 0; t < tiles; t++) {
                    const long i = (b * tiles + t) * S + s;
                    factors[i] = exp_negative(maxima[i] - most);
                    sum += static_cast<double>(sums[i]) * factors[i];
                }
                poison = poison || sum == 0.;  // every position masked
                for (long t = 0; t < tiles; t++) factors[(b * tiles + t) * S + s] /= static_cast<float>(sum);
            }
            // A memory without a softmax makes the sums over the memories NaN at every position.
            if (poison)
                for (long t = 0; t < tiles; t++) poisoned[(b * tiles + t) * G + g] = 1;
        }

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first);
            float* out = y + b * S * N;
            float* total = denominators + (b * N + first) * G;
            const float* factor = &factors[(b * tiles + t) * S];
            if (d.positions_last) {
                std::fill(total, total + count, eps);
                for (long s = 0; s < S; s++) {
                    float* row = out + s * N + first;
                    const float f = factor[s];
                    #pragma omp simd
                    for (long n = 0; n < count; n++) {
                        row[n] *= f;
                        total[n] += row[n];
                    }
                }
                for (long s = 0; s < S; s++) {
                    float* row = out + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++) row[n] /= total[n];
                }
            } else {
                for (long i = 0; i < count * G; i++) {
                    float* row = out + first * S + i * P;
                    const float* of_group = factor + i % G * P;
                    float sum = eps;
                    #pragma omp simd reduction(+ : sum)
                    for (long s = 0; s < P; s++) {
                        row[s] *= of_group[s];
                        sum += row[s];
                    }
                    const float inverse = 1.f / sum;
                    #pragma omp simd
                    for (long s = 0; s < P; s++) row[s] *= inverse;
                    total[i] = sum;
                }
            }
            const float nan = from_bits(0x7fc00000u);
            for (long g = 0; g < G; g++) {
                if (!poisoned[(b * tiles + t) * G + g]) continue;
                for (long n = 0; n < count; n++) total[n * G + g] = nan;
                if (d.positions_last)
                    for (long s = 0; s < S; s++) std::fill_n(out + s * N + first, count, nan);
                else
                    for (long n = 0; n < count; n++) std::fill_n(out + (first + n) * S + g * P, P, nan);
            }
        }
}

// dx from y, the denominators d and g = dL/dy:
//     u = y (g - sum_s g y),   dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']
inline void double_norm_backward(const DoubleNorm& d, const float* y, const float* denominators, const float* g,
                                 float* dx) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles(), G = d.groups, P = d.group();
    std::vector<float> partial(d.batch * tiles * S), sums(d.batch * S);

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first), base = b * S * N;
            float* tile_sum = &partial[(b * tiles + t) * S];
            if (d.positions_last) {
                std::vector<float> dot(count);
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++) dot[n] += g[at + n] * y[at + n];
                }
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    float sum = 0.f;
                    #pragma omp simd reduction(+ : sum)
                    for (long n = 0; n < count; n++) {
                        dx[at + n] = y[at + n] * (g[at + n] - dot[n]);
                        sum += dx[at + n];
                    }
                    tile_sum[s] = sum;
                }
            } else {
                std::fill(tile_sum, tile_sum + S, 0.f);
                for (long i = 0; i < count * G; i++) {
                    const long at = base + first * S + i * P;
                    float* of_group = tile_sum + i % G * P;
                    float dot = 0.f;
                    #pragma omp simd reduction(+ : dot)
                    for (long s = 0; s < P; s++) dot += g[at + s] * y[at + s];
                    #pragma omp simd
                    for (long s = 0; s < P; s++) {
                        dx[at + s] = y[at + s] * (g[at + s] - dot);
                        of_group[s] += dx[at + s];
                    }
                }
            }
        }

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long s = 0; s < S; s++) {
            double sum = 0.;
            for (long t = 0; t < tiles; t++) sum += partial[(b * tiles + t) * S + s];
            sums[b * S + s] = static_cast<float>(sum);
        }

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first), base = b * S * N;
            const float* total = denominators + (b * N + first) * G;
            const float* sum = &sums[b * S];
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++) dx[at + n] -= y[at + n] * total[n] * sum[s];
                }
            } else {
                for (long i = 0; i < count * G; i++) {
                    const long at = base + first * S + i * P;
                    const float* of_group = sum + i % G * P;
                    #pragma omp simd
                    for (long s = 0; s < P; s++) dx[at + s] -= y[at + s] * total[i] * of_group[s];
                }
            }
        }
}

}  // namespace jea
