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

}  // namespace jea
