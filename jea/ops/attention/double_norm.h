// Double normalisation of a (S, N) or (N, S) matrix per batch entry, and its gradient. See double_norm.py.
//
// x is cut into tiles of positions. A tile is read from memory once: its own maxima, exponentials relative to them and
// their sums; then the tiles' statistics are joined; then each tile is rescaled and normalised per position. The gradient
// goes the same way: the sums over the memories, those over the positions, then dx. x and y, and g and dx, may be one.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>
#include "common/lanes.h"

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
    long tile() const {
        const long most = std::min(std::max(65536 / memories, 16L), 4096L);
        const long wanted = 4 * positions <= most ? 1 : (positions + 8 * most - 1) / (8 * most) * 8;
        return (positions + 16 * wanted - 1) / (16 * wanted) * 16;
    }
    long tiles() const { return (positions + tile() - 1) / tile(); }
};

// Of one tile, with x and y at its first element: each memory's maximum, exponentials relative to it and their sum. A
// maximum is -FLT_MAX at least, so that masked positions give 0.
inline void exponentials_of_rows(const DoubleNorm& d, long count, const float* x, float* y, float* maxima, float* sums) {
    const float masked = from_bits(0xff800000u);
    for (long s = 0; s < d.memories; s++) {
        const float* row = x + s * d.positions;
        float* to = y + s * d.positions;
        Floats most[kMostWidth], sum[kMostWidth] = {};
        std::fill(most, most + kMostWidth, lanes(-FLT_MAX));
        for_strips(count, [&](long n, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) most[v] = larger(most[v], strip.load(row + n, v, masked));
        });
        maxima[s] = largest_of(larger(larger(most[0], most[1]), larger(most[2], most[3])));
        const Floats of_row = lanes(maxima[s]);
        for_strips(count, [&](long n, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) {
                __builtin_prefetch(row + d.positions + n + v * kLanes);  // the next row starts far from this one's end
                const Floats e = exp_negative(strip.load(row + n, v, masked) - of_row);
                strip.store(to + n, v, e);
                sum[v] += e;
            }
        });
        sums[s] = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

inline void exponentials_of_columns(const DoubleNorm& d, long count, const float* x, float* y, float* maxima,
                                    float* sums) {
    const long S = d.memories;
    for_strips(S, [&](long s, auto strip) {
        Floats most[strip.kWidth], sum[strip.kWidth] = {};
        std::fill(most, most + strip.kWidth, lanes(-FLT_MAX));
        for (long n = 0; n < count; n++)
            for (int v = 0; v < strip.kWidth; v++) most[v] = larger(most[v], strip.load(x + n * S + s, v));
        for (long n = 0; n < count; n++)
            for (int v = 0; v < strip.kWidth; v++) {
                const Floats e = exp_negative(strip.load(x + n * S + s, v) - most[v]);
                strip.store(y + n * S + s, v, e);
                sum[v] += e;
            }
        for (int v = 0; v < strip.kWidth; v++) {
            strip.store(maxima + s, v, most[v]);
            strip.store(sums + s, v, sum[v]);
        }
    });
}

// The softmax over all positions of one batch entry from its tiles' statistics, all (tiles, memories): e of tile t times
// factors[t, s] is a. `sums` is lost. A memory without a softmax poisons its group.
inline void join_tiles(const DoubleNorm& d, const float* maxima, float* sums, float* factors, char* poisoned) {
    const long S = d.memories, tiles = d.tiles();
    std::vector<float> most(maxima, maxima + S);
    std::vector<double> whole(S);
    for (long t = 1; t < tiles; t++) {
        #pragma omp simd
        for (long s = 0; s < S; s++) most[s] = std::max(most[s], maxima[t * S + s]);
    }
    for (long t = 0; t < tiles; t++) {
        for (long s = 0; s < S; s++)  // NaN and +inf among the logits have made the sum NaN
            if (softmax_bits(sums[t * S + s]) >= kNoSoftmax) poisoned[s / d.group()] = 1;
        #pragma omp simd
        for (long s = 0; s < S; s++) {
            factors[t * S + s] = exp_negative(maxima[t * S + s] - most[s]);
            whole[s] += sums[t * S + s] * factors[t * S + s];
        }
    }
    for (long s = 0; s < S; s++) {
        if (whole[s] == 0.) poisoned[s / d.group()] = 1;  // all masked
        sums[s] = static_cast<float>(1. / whole[s]);
    }
    for (long t = 0; t < tiles; t++) {
        #pragma omp simd
        for (long s = 0; s < S; s++) factors[t * S + s] *= sums[s];
    }
}

// y = e factor / sum of e factor over the memories. total (N, groups) gets that sum, with eps.
inline void normalise_rows(const DoubleNorm& d, float eps, long count, const float* factor, float* y, float* total) {
    const long S = d.memories, N = d.positions;
    for_strips(count, [&](long n, auto strip) {
        Floats sum[strip.kWidth];
        std::fill(sum, sum + strip.kWidth, lanes(eps));
        for (long s = 0; s < S; s++)
            for (int v = 0; v < strip.kWidth; v++) sum[v] += strip.load(y + s * N + n, v) * factor[s];
        for (int v = 0; v < strip.kWidth; v++) {
            strip.store(total + n, v, sum[v]);
            sum[v] = 1.f / sum[v];
        }
        for (long s = 0; s < S; s++)
            for (int v = 0; v < strip.kWidth; v++)
                strip.store(y + s * N + n, v, strip.load(y + s * N + n, v) * (factor[s] * sum[v]));
    });
}

inline void normalise_columns(const DoubleNorm& d, float eps, long count, const float* factor, float* y, float* total) {
    const long P = d.group();
    for (long i = 0; i < count * d.groups; i++) {
        float* row = y + i * P;
        const float* of_group = factor + i % d.groups * P;
        Floats sum{};
        for_strips(P, [&](long s, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) sum += strip.load(row + s, v) * strip.load(of_group + s, v);
        });
        total[i] = eps + sum_of(sum);
        const float inverse = 1.f / total[i];
        for_strips(P, [&](long s, auto strip) {
            for (int v = 0; v < strip.kWidth; v++)
                strip.store(row + s, v, strip.load(row + s, v) * (strip.load(of_group + s, v) * inverse));
        });
    }
}

// NaN wherever a memory without a softmax has its part.
inline void poison(const DoubleNorm& d, long count, const char* poisoned, float* y, float* total) {
    const long P = d.group();
    const float nan = from_bits(0x7fc00000u);
    for (long g = 0; g < d.groups; g++) {
        if (!poisoned[g]) continue;
        for (long n = 0; n < count; n++) {
            total[n * d.groups + g] = nan;
            if (!d.positions_last) std::fill_n(y + n * d.memories + g * P, P, nan);
        }
        for (long s = 0; d.positions_last && s < d.memories; s++) std::fill_n(y + s * d.positions, count, nan);
    }
}

// Forward. denominators (batch, N, groups) keeps eps + sum_s a[s, n] for the gradient.
inline void double_norm_forward(const DoubleNorm& d, float eps, const float* x, float* y, float* denominators) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles();
    std::vector<float> maxima(d.batch * tiles * S), sums(maxima.size()), factors(maxima.size());
    std::vector<char> poisoned(d.batch * d.groups);

    #pragma omp parallel
    {
        #pragma omp for collapse(2)
        for (long b = 0; b < d.batch; b++)
            for (long t = 0; t < tiles; t++) {
                const long first = t * T, at = b * S * N + (d.positions_last ? first : first * S),
                           of_tile = (b * tiles + t) * S;
                (d.positions_last ? exponentials_of_rows : exponentials_of_columns)(
                    d, std::min(T, N - first), x + at, y + at, &maxima[of_tile], &sums[of_tile]);
            }

        #pragma omp for
        for (long b = 0; b < d.batch; b++) {
            const long at = b * tiles * S;
            join_tiles(d, &maxima[at], &sums[at], &factors[at], &poisoned[b * d.groups]);
        }

        #pragma omp for collapse(2)
        for (long b = 0; b < d.batch; b++)
            for (long t = 0; t < tiles; t++) {
                const long first = t * T, count = std::min(T, N - first);
                float* to = y + b * S * N + (d.positions_last ? first : first * S);
                float* total = denominators + (b * N + first) * d.groups;
                (d.positions_last ? normalise_rows : normalise_columns)(d, eps, count, &factors[(b * tiles + t) * S], to,
                                                                        total);
                poison(d, count, &poisoned[b * d.groups], to, total);
            }
    }
}

// Calls work(first, rows) for as many times four rows as there are, and then for each that is left.
template <class Work>
inline void for_rows(long count, const Work& work) {
    long first = 0;
    for (; first + 4 <= count; first += 4) work(first, std::integral_constant<int, 4>());
    for (; first < count; first++) work(first, std::integral_constant<int, 1>());
}

// Of one tile: dot[n] = sum_s g[s, n] y[s, n], and each memory's sum of u = y (g - dot).
inline void gradient_sums_of_rows(const DoubleNorm& d, long count, const float* y, const float* g, float* dot,
                                  float* sums) {
    const long N = d.positions;
    std::fill(dot, dot + count, 0.f);
    for_rows(d.memories, [&](long s, auto rows) {
        Floats sum[rows()] = {};
        for_strips(count, [&](long n, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) {
                Floats all = strip.load(dot + n, v);
                for (int r = 0; r < rows(); r++) {
                    const Floats product = strip.load(y + (s + r) * N + n, v) * strip.load(g + (s + r) * N + n, v);
                    sum[r] += product;
                    all += product;
                }
                strip.store(dot + n, v, all);
            }
        });
        for (int r = 0; r < rows(); r++) sums[s + r] = sum_of(sum[r]);
    });
    for_rows(d.memories, [&](long s, auto rows) {
        Floats sum[rows()] = {};
        for_strips(count, [&](long n, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) {
                const Floats here = strip.load(dot + n, v);
                for (int r = 0; r < rows(); r++) sum[r] += strip.load(y + (s + r) * N + n, v) * here;
            }
        });
        for (int r = 0; r < rows(); r++) sums[s + r] -= sum_of(sum[r]);
    });
}

inline void gradient_sums_of_columns(const DoubleNorm& d, long count, const float* y, const float* g, float* dot,
                                     float* sums) {
    const long P = d.group();
    std::fill(sums, sums + d.memories, 0.f);
    for (long i = 0; i < count * d.groups; i++) {
        const float *of_y = y + i * P, *of_g = g + i * P;
        float* to = sums + i % d.groups * P;
        Floats sum{};
        for_strips(P, [&](long s, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) sum += strip.load(of_g + s, v) * strip.load(of_y + s, v);
        });
        dot[i] = sum_of(sum);
        for_strips(P, [&](long s, auto strip) {
            for (int v = 0; v < strip.kWidth; v++)
                strip.store(to + s, v, strip.load(to + s, v)
                                           + strip.load(of_y + s, v) * (strip.load(of_g + s, v) - dot[i]));
        });
    }
}

// dx = y (g - dot - total sum), sum being u's over all positions.
inline void gradient_of_rows(const DoubleNorm& d, long count, const float* y, const float* total, const float* dot,
                             const float* sum, const float* g, float* dx) {
    for (long s = 0; s < d.memories; s++) {
        const long at = s * d.positions;
        for_strips(count, [&](long n, auto strip) {
            for (int v = 0; v < strip.kWidth; v++) {
                const long here = at + n + v * kLanes;
                for (const float* p : {y, g, static_cast<const float*>(dx)}) __builtin_prefetch(p + here + d.positions);
                strip.store(dx + at + n, v, strip.load(y + at + n, v)
                                                * (strip.load(g + at + n, v) - strip.load(dot + n, v)
                                                   - strip.load(total + n, v) * sum[s]));
            }
        });
    }
}

inline void gradient_of_columns(const DoubleNorm& d, long count, const float* y, const float* total, const float* dot,
                                const float* sum, const float* g, float* dx) {
    const long P = d.group();
    for (long i = 0; i < count * d.groups; i++) {
        const float* of_group = sum + i % d.groups * P;
        for_strips(P, [&](long s, auto strip) {
            for (int v = 0; v < strip.kWidth; v++)
                strip.store(dx + i * P + s, v, strip.load(y + i * P + s, v)
                                                   * (strip.load(g + i * P + s, v) - dot[i]
                                                      - strip.load(of_group + s, v) * total[i]));
        });
    }
}

// dx from y, the denominators d and g = dL/dy:
//     dot[n] = sum_s g[s, n] y[s, n],   u = y (g - dot),   dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']
inline void double_norm_backward(const DoubleNorm& d, const float* y, const float* denominators, const float* g,
                                 float* dx) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles(), G = d.groups;
    std::vector<float> partial(d.batch * tiles * S), sums(d.batch * S), dots(d.batch * N * G);

    #pragma omp parallel
    {
        #pragma omp for collapse(2)
        for (long b = 0; b < d.batch; b++)
            for (long t = 0; t < tiles; t++) {
                const long first = t * T, at = b * S * N + (d.positions_last ? first : first * S);
                (d.positions_last ? gradient_sums_of_rows : gradient_sums_of_columns)(
                    d, std::min(T, N - first), y + at, g + at, &dots[(b * N + first) * G],
                    &partial[(b * tiles + t) * S]);
            }

        #pragma omp for
        for (long b = 0; b < d.batch; b++) {
            std::vector<double> whole(S);
            for (long t = 0; t < tiles; t++) {
                #pragma omp simd
                for (long s = 0; s < S; s++) whole[s] += partial[(b * tiles + t) * S + s];
            }
            std::copy(whole.begin(), whole.end(), sums.begin() + b * S);
        }

        #pragma omp for collapse(2)
        for (long b = 0; b < d.batch; b++)
            for (long t = 0; t < tiles; t++) {
                const long first = t * T, at = b * S * N + (d.positions_last ? first : first * S);
                (d.positions_last ? gradient_of_rows : gradient_of_columns)(
                    d, std::min(T, N - first), y + at, denominators + (b * N + first) * G, &dots[(b * N + first) * G],
                    &sums[b * S], g + at, dx + at);
            }
    }
}

}  // namespace jea
