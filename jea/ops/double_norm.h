// Double normalisation of a (S, N) or (N, S) matrix per batch entry, and its gradient. See double_norm.py.
//
// x is cut into tiles of positions. A tile is read from memory once: its own maxima, exponentials relative to them and
// their sums; then the tiles' statistics are joined; then each tile is rescaled and normalised per position.
// Jittor compiles with -Ofast, under which comparisons with NaN mean nothing: values that are not finite are told by
// their bits.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace jea {

// 0x7f800000 or more for NaN and +inf, less for all others. -inf counts as 0: it is a mask.
constexpr uint32_t kNoSoftmax = 0x7f800000u;
inline uint32_t softmax_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits == 0xff800000u ? 0u : bits & 0x7fffffffu;
}

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87. A polynomial, so that any compiler vectorises it.
inline float exp_negative(float x) {
    const float clamped = std::max(x, -87.f);
    const float n = std::nearbyint(clamped * 1.44269504f);
    const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, clamped));  // x - n ln 2
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    const float scaled = p * from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
    return x < -87.f ? 0.f : scaled;
}

// One batch entry: element (s, n) of the map stands at s * stride_s + n * stride_n; one of the strides is 1.
struct DoubleNorm {
    long batch, memories, positions;
    bool positions_last;

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

// Forward. denominators (batch, N) keeps eps + sum_s a[s, n] for the gradient.
inline void double_norm_forward(const DoubleNorm& d, float eps, const float* x, float* y, float* denominators) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles();
    std::vector<float> maxima(d.batch * tiles * S), sums(maxima.size()), factors(maxima.size());
    std::vector<char> poisoned(d.batch * tiles);

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first);
            const float* in = x + b * S * N;
            float* out = y + b * S * N;
            float* tile_max = &maxima[(b * tiles + t) * S];
            float* tile_sum = &sums[(b * tiles + t) * S];
            bool poison = false;
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const float* row = in + s * N + first;
                    float* to = out + s * N + first;
                    poison = poison || without_softmax(row, count);
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
                poison = without_softmax(rows, count * S);
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
            poisoned[b * tiles + t] = poison;
        }

    // Softmax over all positions: e of tile t, times factors[t, s], is a.
    for (long b = 0; b < d.batch; b++) {
        bool poison = false;
        for (long t = 0; t < tiles; t++) poison = poison || poisoned[b * tiles + t];
        for (long s = 0; s < S; s++) {
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
        if (poison) std::fill(&poisoned[b * tiles], &poisoned[b * tiles] + tiles, char(1));
    }

    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long t = 0; t < tiles; t++) {
            const long first = t * T, count = std::min(T, N - first);
            float* out = y + b * S * N;
            float* total = denominators + b * N + first;
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
                for (long n = 0; n < count; n++) {
                    float* row = out + (first + n) * S;
                    float sum = eps;
                    #pragma omp simd reduction(+ : sum)
                    for (long s = 0; s < S; s++) {
                        row[s] *= factor[s];
                        sum += row[s];
                    }
                    const float inverse = 1.f / sum;
                    #pragma omp simd
                    for (long s = 0; s < S; s++) row[s] *= inverse;
                    total[n] = sum;
                }
            }
            if (poisoned[b * tiles + t]) {
                const float nan = from_bits(0x7fc00000u);
                std::fill(total, total + count, nan);
                if (d.positions_last)
                    for (long s = 0; s < S; s++) std::fill_n(out + s * N + first, count, nan);
                else
                    std::fill_n(out + first * S, count * S, nan);
            }
        }
}

// dx from y, the denominators d and g = dL/dy:
//     u = y (g - sum_s g y),   dx[s, n] = u[s, n] - y[s, n] d[n] sum_n' u[s, n']
inline void double_norm_backward(const DoubleNorm& d, const float* y, const float* denominators, const float* g,
                                 float* dx) {
    const long S = d.memories, N = d.positions, T = d.tile(), tiles = d.tiles();
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
                for (long n = 0; n < count; n++) {
                    const long at = base + (first + n) * S;
                    float dot = 0.f;
                    #pragma omp simd reduction(+ : dot)
                    for (long s = 0; s < S; s++) dot += g[at + s] * y[at + s];
                    #pragma omp simd
                    for (long s = 0; s < S; s++) {
                        dx[at + s] = y[at + s] * (g[at + s] - dot);
                        tile_sum[s] += dx[at + s];
                    }
                }
            }
        }

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
            const float* total = denominators + b * N + first;
            const float* sum = &sums[b * S];
            if (d.positions_last) {
                for (long s = 0; s < S; s++) {
                    const long at = base + s * N + first;
                    #pragma omp simd
                    for (long n = 0; n < count; n++) dx[at + n] -= y[at + n] * total[n] * sum[s];
                }
            } else {
                for (long n = 0; n < count; n++) {
                    const long at = base + (first + n) * S;
                    #pragma omp simd
                    for (long s = 0; s < S; s++) dx[at + s] -= y[at + s] * total[n] * sum[s];
                }
            }
        }
}

}  // namespace jea
