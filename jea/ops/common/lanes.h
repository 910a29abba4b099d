// Sixteen floats side by side, for loops that hold running values in registers; the compiler maps them to whatever
// vectors the processor has.
#pragma once
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include <algorithm>
#include <cstring>
#include "common/exp.h"
#include <cstdint>  // Jittor puts definitions that it needs behind the last #include: not into an #ifdef
#pragma GCC diagnostic ignored "-Wpsabi"  // about passing them between files: here all is inlined

namespace jea {

constexpr long kLanes = 16;
typedef float Floats __attribute__((vector_size(64)));

inline Floats lanes(float x) { return Floats{} + x; }

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// The first `count` of them, 0 to 16; the others read as `fill`.
inline Floats load(const float* from, long count, float fill) {
    Floats x = lanes(fill);
#ifdef __AVX512F__
    return (Floats)_mm512_mask_loadu_ps((__m512)x, (1u << count) - 1, from);
#else
    for (long i = 0; i < count; i++) x[i] = from[i];
    return x;
#endif
}

inline void store(float* to, Floats x, long count) {
#ifdef __AVX512F__
    _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)x);
#else
    for (long i = 0; i < count; i++) to[i] = x[i];
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float sum_of(Floats x) {
    float sum = 0.f;
    for (long i = 0; i < kLanes; i++) sum += x[i];
    return sum;
}

inline float largest_of(Floats x) {
    float most = x[0];
    for (long i = 1; i < kLanes; i++) most = std::max(most, x[i]);
    return most;
}

// exp of each lane, for x <= 0, and NaN of NaN.
inline Floats exp_negative(Floats x) {
#ifdef __AVX512F__
    const __m512 n = _mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f),
                                     _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), (__m512)x));
    const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.f), _CMP_NLT_UQ);
    return (Floats)_mm512_maskz_scalef_ps(kept, (__m512)exp_of_rest((Floats)r), n);
#else
    Floats y;
    for (long i = 0; i < kLanes; i++) y[i] = softmax_bits(x[i]) > kNoSoftmax ? x[i] : exp_negative(x[i]);
    return y;
#endif
}

// V times 16 floats in a row or, with V = 1, the first `count` of 16.
template <int V>
struct Strip {
    static constexpr int kWidth = V;
    long count;

    Floats load(const float* from, int v, float fill = 0.f) const {
        return V == 1 ? jea::load(from, count, fill) : jea::load(from + v * kLanes);
    }
    void store(float* to, int v, Floats x) const {
        if (V == 1) jea::store(to, x, count);
        else jea::store(to + v * kLanes, x);
    }
};

constexpr int kMostWidth = 4;

// Calls work(first, strip) for strips that make up `count` floats.
template <class Work>
inline void for_strips(long count, const Work& work) {
    long first = 0;
    for (; first + kMostWidth * kLanes <= count; first += kMostWidth * kLanes)
        work(first, Strip<kMostWidth>{kMostWidth * kLanes});
    for (; first < count; first += kLanes) work(first, Strip<1>{std::min(kLanes, count - first)});
}

}  // namespace jea
