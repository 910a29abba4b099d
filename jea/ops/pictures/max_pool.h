// Maximum over 3x3 windows with stride 2 and padding 1, channels last, of float or bfloat16. See max_pool.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace jea {

// bfloat16 is the upper half of a float32.
inline float value_of(float x) { return x; }
inline float value_of(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
inline void max_pool(const T* x, T* y, long batch, long height, long width, long channels) {
    const long out_h = (height + 1) / 2, out_w = (width + 1) / 2;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long i = 0; i < out_h; i++)
            for (long j = 0; j < out_w; j++) {
                T* out = y + ((b * out_h + i) * out_w + j) * channels;
                const T* centre = x + ((b * height + 2 * i) * width + 2 * j) * channels;
                std::copy(centre, centre + channels, out);  // windows are centred on even positions
                for (long r = std::max(2 * i - 1, 0L); r <= std::min(2 * i + 1, height - 1); r++)
                    for (long s = std::max(2 * j - 1, 0L); s <= std::min(2 * j + 1, width - 1); s++) {
                        const T* in = x + ((b * height + r) * width + s) * channels;
                        #pragma omp simd
                        for (long c = 0; c < channels; c++) out[c] = value_of(out[c]) < value_of(in[c]) ? in[c] : out[c];
                    }
            }
}

}  // namespace jea
