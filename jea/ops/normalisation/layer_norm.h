// LayerNorm over rows of `width` values, and its gradient. See layer_norm.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include "common/sums.h"
#include "normalisation/layer_norm_sizes.h"

namespace jea {

// The normalised value is h = (x - mean) inverse - shift: float32 does not hold all of the mean.
struct LayerNormRow {
    float mean, inverse, shift;

    float normalised(float x) const { return (x - mean) * inverse - shift; }
};

// y = (x - mean) / sqrt(variance + eps) * weight + bias; rows (rows, 3) keeps the statistics for the gradient.
inline void layer_norm_forward(const LayerNorm& d, const float* x, const float* weight, const float* bias, float* y,
                               float* rows) {
    #pragma omp parallel for
    for (long r = 0; r < d.rows; r++) {
        const float* in = x + r * d.width;
        float* out = y + r * d.width;
        // Two passes: the squares are of differences from the mean.
        double sum = 0., squares = 0.;
        add_sums(in, d.width, in[0], sum, squares);
        const float mean = static_cast<float>(in[0] + sum / d.width);
        sum = squares = 0.;
        add_sums(in, d.width, mean, sum, squares);
        const double rest = sum / d.width;
        const double inverse = 1. / std::sqrt(std::fabs(squares / d.width - rest * rest) + d.eps);
        const LayerNormRow row{mean, static_cast<float>(inverse), static_cast<float>(rest * inverse)};
        #pragma omp simd
        for (long i = 0; i < d.width; i++) out[i] = row.normalised(in[i]) * weight[i] + bias[i];
        reinterpret_cast<LayerNormRow*>(rows)[r] = row;
    }
}

// With h = (x - mean) / sqrt(variance + eps) and g = dy weight, and means over a row:
//     dx = (g - mean(g) - h mean(g h)) / sqrt(variance + eps),   dweight = sum over rows of dy h,   dbias = of dy
// The sums over rows run in blocks of fixed size, so that they do not depend on the number of threads.
inline void layer_norm_backward(const LayerNorm& d, const float* x, const float* weight, const float* rows,
                                const float* dy, float* dx, float* dweight, float* dbias) {
    const long block = std::max((d.rows + 63) / 64, 32L), blocks = (d.rows + block - 1) / block, w = d.width;
    std::vector<float> partial(2 * blocks * w);
    #pragma omp parallel for
    for (long b = 0; b < blocks; b++) {
        float *weight_sums = &partial[2 * b * w], *bias_sums = weight_sums + w;
        for (long r = b * block; r < std::min((b + 1) * block, d.rows); r++) {
            const LayerNormRow row = reinterpret_cast<const LayerNormRow*>(rows)[r];
            const float *in = x + r * w, *grad = dy + r * w;
            float* to = dx + r * w;
            double sum = 0., product = 0.;  // of g and of g h
            for (long first = 0; first < w; first += kSumBlock) {
                const long last = std::min(first + kSumBlock, w);
                float s = 0.f, p = 0.f;
                #pragma omp simd reduction(+ : s, p)
                for (long i = first; i < last; i++) {
                    const float h = row.normalised(in[i]), g = grad[i] * weight[i];
                    weight_sums[i] += grad[i] * h;
                    bias_sums[i] += grad[i];
                    s += g;
                    p += g * h;
                }
                sum += s;
                product += p;
            }
            const float offset = static_cast<float>(sum / w), slope = static_cast<float>(product / w);
            #pragma omp simd
            for (long i = 0; i < w; i++) {
                to[i] = row.inverse * (grad[i] * weight[i] - offset - row.normalised(in[i]) * slope);
            }
        }
    }
    #pragma omp parallel for
    for (long i = 0; i < w; i++) {
        double weight_sum = 0., bias_sum = 0.;
        for (long b = 0; b < blocks; b++) {
            weight_sum += partial[2 * b * w + i];
            bias_sum += partial[2 * b * w + w + i];
        }
        dweight[i] = static_cast<float>(weight_sum);
        dbias[i] = static_cast<float>(bias_sum);
    }
}

}  // namespace jea
