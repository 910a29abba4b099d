// Overlapping patches as tokens, and the gradient. See soft_split.py.
#pragma once
#include <algorithm>
#include "pictures/soft_split_sizes.h"

namespace jea {

// tokens (batch, rows * columns, channels * kernel^2), the channel slowest within a token; zeros beyond the border.
inline void soft_split_forward(const SoftSplit& d, const float* picture, float* tokens) {
    const long rows = d.rows(), columns = d.columns(), area = d.kernel * d.kernel;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long r = 0; r < rows; r++)
            for (long q = 0; q < columns; q++) {
                float* token = tokens + ((b * rows + r) * columns + q) * d.token();
                const float* from = picture + b * d.channels * d.height * d.width;
                for (long k = 0; k < area; k++) {
                    const long y = r * d.stride - d.padding + k / d.kernel, x = q * d.stride - d.padding + k % d.kernel;
                    if (y < 0 || y >= d.height || x < 0 || x >= d.width) {
                        for (long c = 0; c < d.channels; c++) token[c * area + k] = 0.f;
                        continue;
                    }
                    const float* pixel = from + (y * d.width + x) * d.pixel_step();
                    for (long c = 0; c < d.channels; c++) token[c * area + k] = pixel[c * d.channel_step()];
                }
            }
}

// Each pixel gathers the gradients of the tokens that hold it.
inline void soft_split_backward(const SoftSplit& d, const float* dtokens, float* dpicture) {
    const long rows = d.rows(), columns = d.columns(), area = d.kernel * d.kernel;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < d.batch; b++)
        for (long y = 0; y < d.height; y++)
            for (long x = 0; x < d.width; x++) {
                float* pixel = dpicture + b * d.channels * d.height * d.width + (y * d.width + x) * d.pixel_step();
                for (long c = 0; c < d.channels; c++) pixel[c * d.channel_step()] = 0.f;
                for (long k = 0; k < area; k++) {
                    const long below = y + d.padding - k / d.kernel, right = x + d.padding - k % d.kernel;
                    const long r = below / d.stride, q = right / d.stride;
                    if (below < 0 || right < 0 || below % d.stride || right % d.stride || r >= rows || q >= columns)
                        continue;
                    const float* token = dtokens + ((b * rows + r) * columns + q) * d.token() + k;
                    for (long c = 0; c < d.channels; c++) pixel[c * d.channel_step()] += token[c * area];
                }
            }
}

}  // namespace jea
