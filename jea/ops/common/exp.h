// What the softmaxes share: the exponential, and telling values that have no softmax.
//
// Jittor compiles with -Ofast, under which comparisons with NaN mean nothing: values that are not finite are told by
// their bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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

}  // namespace jea
