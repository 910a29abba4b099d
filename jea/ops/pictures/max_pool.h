// Maximum over 3x3 windows with stride 2 and padding 1, channels last. See conv.py.
#pragma once
#include <algorithm>

namespace jea {

inline void max_pool(const float* x, float* y, long batch, long height, long width, long channels) {
    const long out_h = (height + 1) / 2, out_w = (width + 1) / 2;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long i = 0; i < out_h; i++)
            for (long j = 0; j < out_w; j++) {
                float* out = y + ((b * out_h + i) * out_w + j) * channels;
                const float* centre = x + ((b * height + 2 * i) * width + 2 * j) * channels;
                std::copy(centre, centre + channels, out);  // windows are centred on even positions
                for (long r = std::max(2 * i - 1, 0L); r <= std::min(2 * i + 1, height - 1); r++)
                    for (long s = std::max(2 * j - 1, 0L); s <= std::min(2 * j + 1, width - 1); s++) {
                        const float* in = x + ((b * height + r) * width + s) * channels;
                        #pragma omp simd
                        for (long c = 0; c < channels; c++) out[c] = std::max(out[c], in[c]);
                    }
            }
}

}  // namespace jea
