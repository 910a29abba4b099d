// Double normalisation of a (S, N) or (N, S) matrix per batch entry, and its gradient. See double_norm.py.
//
// x is cut into tiles of positions. A tile is read from memory once: its own maxima, exponentials relative to them and
// their sums; then the tiles' statistics are joined; then each tile is rescaled and normalised per position. The gradient
// goes the same way: the sums over the memories, those over the positions, then dx.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include "exp.h"

// g++ takes half of AVX-512's registers unless told otherwise; these loops are the faster for the whole of them.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define JEA_WIDE __attribute__((target("prefer-vector-width=512")))
#else
#define JEA_WIDE
#endif

namespace jea {

// One batch entry: element (s, n) of the map stands at s * stride_s + n * stride_n; one of the strides is 1.
// The memories are those of `groups` maps side by side (more than one only where the memories are last): the second
// step sums over each group's own.
struct DoubleNorm {
    long batch, memories, positions;
    bool positions_last;
    long groups = 1;

    long group() const { return memories / groups; }

    // Positions of a tile, a multiple of 16: at most 256 kB, which the second-level cache keeps, and a multiple of eight
    // tiles, so that threads get equal shares. Their number has no part in it: results do not depend on it.
    static constexpr long kMost = 4096;
    long tile() const {
        const long most = std::min(std::max(65536 / memories, 16L), kMost);
        const long wanted = 4 * positions <= most ? 1 : (positions + 8 * most - 1) / (8 * most) * 8;
        return (positions + 16 * wanted - 1) / (16 * wanted) * 16;
    }
    long tiles() const { return (positions + tile() - 1) / tile(); }
};

inline bool without_softmax(const float* x, long count) {
    uint32_t most = 0;
    #pragma omp simd reduction(max : most)
    for (long i = 0; i < count; i++) most = std::max(most, softmax_bits(x[i]));
    return most >= kNoSoftmax;
}

// The softmax over all positions of one batch entry from its tiles' statistics, all (tiles, memories): e of tile t times
// factors[t, s] is a. `sums` is lost. A memory whose positions are all masked poisons its group.
JEA_WIDE inline void join_tiles(const DoubleNorm& d, const float* maxima, float* sums, float* factors, char* poisoned) {
    const long S = d.memories, tiles = d.tiles(), G = d.groups;
    std::vector<float> most(maxima, maxima + S);
    std::vector<double> whole(S);
    for (long t = 1; t < tiles; t++) {
        #pragma omp simd
        for (long s = 0; s < S; s++) most[s] = std::max(most[s], maxima[t * S + s]);
    }
    for (long t = 0; t < tiles; t++) {
        #pragma omp simd
        for (long s = 0; s < S; s++) {
            factors[t * S + s] = exp_negative(maxima[t * S + s] - most[s]);
            whole[s] += sums[t * S + s] * factors[t * S + s];
        }
    }
    for (long s = 0; s < S; s++) {
        if (whole[s] == 0.) poisoned[s / d.group()] = 1;
        sums[s] = static_cast<float>(1. / whole[s]);
    }
    for (long t = 0; t < tiles; t++) {
        #pragma omp simd
        for (long s = 0; s < S; s++) factors[t * S + s] *= sums[s];
    }
    // A memory without a softmax makes the sums over the memories NaN at every position.
    for (long t = 0; t < tiles; t++)
        for (long g = 0; g < G; g++) poisoned[g] = poisoned[g] || poisoned[t * G + g];
    for (long t = 1; t < tiles; t++) std::copy(poisoned, poisoned + G, poisoned + t * G);
}

// Forward. denominators (batch, N, groups) keeps eps + sum_s a[s, n] for the gradient.
JEA_WIDE inline void double_norm_forward(const DoubleNorm& d, float eps, const float* x, float* y,
                                         float* denominators) {
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
                    float most = -FLT_MAX;  // not -inf: a tile of masked positions must give zeros
                    uint32_t bits = 0;
                    #pragma omp simd reduction(max : most, bits)
                    for (long n = 0; n < count; n++) {
                        most = row[n] > most ? row[n] : most;
                        bits = std::max(bits, softmax_bits(row[n]));
                    }
                    poison[0] = poison[0] || bits >= kNoSoftmax;
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

    #pragma omp parallel for if (d.batch > 1)
    for (long b = 0; b < d.batch; b++) {
        const long at = b * tiles * S;
        join_tiles(d, &maxima[at], &sums[at], &factors[at], &poisoned[b * tiles * G]);
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
                    const float* row = out + s * N + first;
                    const float f = factor[s];
                    #pragma omp simd
                    for (long n = 0; n < count; n++) total[n] += row[n] * f;
                }
                float inverse[DoubleNorm::kMost];
                #pragma omp simd
                for (long n = 0; n < count; n++) inverse[n] = 1.f / total[n];
                for (long s = 0; s < S; s++) {
                    float* row = out + s * N + first;
                    const float f = factor[s];
                    #pragma omp simd
                    for (long n = 0; n < count; n++) row[n] *= f * inverse[n];
                }
            } else {
                for (long i = 0; i < count * G; i++) {
                    float* row = out + first * S + i * P;
                    const float* of_group = factor + i % G * P;
                    float sum = eps;
                    #pragma omp simd reduction(+ : sum)
                    for (long s = 0; s < P; s++) sum += row[s] * of_group[s];
                    const float inverse = 1.f / sum;
                    #pragma omp simd
                    for (long s = 0; s < P; s++) row[s] *= of_group[s] * inverse;
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
//     dot[n] = sum_s g[s, n] y[s, n],   u = y (g - dot),   dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']
JEA_WIDE inline void double_norm_backward(const DoubleNorm& d, const float* y, const float* denominators, const float* g,
                                          float* dx) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles(), G = d.groups, P = d.group();
    std::vector<float> partial(d.batch * tiles * S), sums(d.batch * S), dots(d.batch * N * G);

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first), base = b * S * N;
            float* tile_sum = &partial[(b * tiles + t) * S];
            float* dot = &dots[(b * N + first) * G];
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++) dot[n] += g[at + n] * y[at + n];
                }
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    float sum = 0.f;
                    #pragma omp simd reduction(+ : sum)
                    for (long n = 0; n < count; n++) sum += y[at + n] * (g[at + n] - dot[n]);
                    tile_sum[s] = sum;
                }
            } else {
                for (long i = 0; i < count * G; i++) {
                    const long at = base + first * S + i * P;
                    float* of_group = tile_sum + i % G * P;
                    float sum = 0.f;
                    #pragma omp simd reduction(+ : sum)
                    for (long s = 0; s < P; s++) sum += g[at + s] * y[at + s];
                    dot[i] = sum;
                    #pragma omp simd
                    for (long s = 0; s < P; s++) of_group[s] += y[at + s] * (g[at + s] - sum);
                }
            }
        }

    for (long b = 0; b < d.batch; b++) {
        std::vector<double> whole(S);
        for (long t = 0; t < tiles; t++) {
            #pragma omp simd
            for (long s = 0; s < S; s++) whole[s] += partial[(b * tiles + t) * S + s];
        }
        std::copy(whole.begin(), whole.end(), sums.begin() + b * S);
    }

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first), base = b * S * N;
            const float* total = denominators + (b * N + first) * G;
            const float* dot = &dots[(b * N + first) * G];
            const float* sum = &sums[b * S];
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++)
                        dx[at + n] = y[at + n] * (g[at + n] - dot[n] - total[n] * sum[s]);
                }
            } else {
                for (long i = 0; i < count * G; i++) {
                    const long at = base + first * S + i * P;
                    const float* of_group = sum + i % G * P;
                    #pragma omp simd
                    for (long s = 0; s < P; s++) dx[at + s] = y[at + s] * (g[at + s] - dot[i] - total[i] * of_group[s]);
                }
            }
        }
}

}  // namespace jea
