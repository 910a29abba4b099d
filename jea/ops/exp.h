// What the softmaxes share: the exponential, and telling values that have no softmax.
//
// Jittor compiles with -Ofast, under which comparisons with NaN mean nothing: values that are not finite are told by
// their bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include "lanes.h"

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

// exp(r) for |r| <= ln(2) / 2: 1 + r + r^2 times a polynomial fitted to 3e-9 of exp.
template <class T>
inline T exp_of_rest(T r) {
    T p = 1.3814584e-3f * r + 8.368724e-3f;
    p = p * r + 4.166839e-2f;
    p = p * r + 1.6666521e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * r + 1.f;
    return p * r + 1.f;
}

// exp(x) for x <= 0, to one unit in the last place; 0 below -87. Any compiler vectorises it.
inline float exp_negative(float x) {
    const float clamped = std::max(x, -87.f);
    const float n = std::nearbyint(clamped * 1.44269504f);
    const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, clamped));  // x - n ln 2
    const float scaled = exp_of_rest(r) * from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
    return x < -87.f ? 0.f : scaled;
}

// The same of each lane, and NaN of NaN.
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

}  // namespace jea
