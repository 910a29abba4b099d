// BatchNorm over (batch, channels, inner), with an optional summand and ReLU, and its gradient. See batch_norm.py.
//
// A channel of usual size stays in the processor's cache between its passes: memory is read once and written once.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include "common/sums.h"
#include "normalisation/batch_norm_sizes.h"

namespace jea {

// max(x, 0) that hands NaN on. By the bits: under -Ofast comparisons with NaN mean nothing.
inline float relu_or_nan(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits = (bits >> 31) && !nan ? 0u : bits;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Sums of x - pivot and of its square, of one channel.
inline void channel_sums(const BatchNorm& d, const float* x, long c, float pivot, double& sum, double& squares) {
    sum = squares = 0.;
    for (long b = 0; b < d.batch; b++) add_sums(d.run(x, b, c), d.inner, pivot, sum, squares);
}

// y = relu?((x - mean) weight / sqrt(variance + eps) + bias + residual?). While training mean and variance (biased) are
// outputs, else copies of `running`.
inline void batch_norm_forward(const BatchNorm& d, const float* x, const float* weight, const float* bias,
                               const float* running_mean, const float* running_variance, const float* residual,
                               float* y, float* means, float* variances) {
    const long n = d.count();
    #pragma omp parallel for
    for (long c = 0; c < d.channels; c++) {
        float mean = running_mean[c];
        double variance = running_variance[c], rest = 0.;  // the part of the mean that float32 does not hold
        if (d.training) {
            // Two passes: the squares are of differences from the mean.
            double sum, squares;
            const float pivot = d.run(x, 0, c)[0];
            channel_sums(d, x, c, pivot, sum, squares);
            mean = static_cast<float>(pivot + sum / n);
            channel_sums(d, x, c, mean, sum, squares);
            rest = sum / n;
            variance = std::max(squares / n - rest * rest, 0.);
        }
        means[c] = mean;
        variances[c] = static_cast<float>(variance);
        const double exact_scale = weight[c] / std::sqrt(variance + d.eps);
        const float scale = static_cast<float>(exact_scale), shift = static_cast<float>(bias[c] - rest * exact_scale);
        for (long b = 0; b < d.batch; b++) {
            const float* in = d.run(x, b, c);
            const float* add = residual ? d.run(residual, b, c) : nullptr;
            float* out = d.run(y, b, c);
            if (add && d.relu) {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) out[i] = relu_or_nan((in[i] - mean) * scale + shift + add[i]);
            } else if (add) {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) out[i] = (in[i] - mean) * scale + shift + add[i];
            } else if (d.relu) {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) out[i] = relu_or_nan((in[i] - mean) * scale + shift);
            } else {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) out[i] = (in[i] - mean) * scale + shift;
            }
        }
    }
}

// With g = dy, or dy where y > 0 (relu): the gradients of x, weight, bias and, unless null, the summand (g itself).
inline void batch_norm_backward(const BatchNorm& d, const float* x, const float* y, const float* dy,
                                const float* weight, const float* means, const float* variances, float* dx,
                                float* dweight, float* dbias, float* dresidual) {
    const long n = d.count();
    #pragma omp parallel for
    for (long c = 0; c < d.channels; c++) {
        const float mean = means[c];
        const double inverse = 1. / std::sqrt(variances[c] + d.eps);
        double sum = 0., product = 0.;  // of g and of g (x - mean)
        for (long b = 0; b < d.batch; b++) {
            const float *in = d.run(x, b, c), *out = d.run(y, b, c), *grad = d.run(dy, b, c);
            for (long first = 0; first < d.inner; first += kSumBlock) {
                const long last = std::min(first + kSumBlock, d.inner);
                float s = 0.f, p = 0.f;
                if (d.relu) {
                    #pragma omp simd reduction(+ : s, p)
                    for (long i = first; i < last; i++) {
                        const float g = out[i] > 0.f ? grad[i] : 0.f;
                        s += g;
                        p += g * (in[i] - mean);
                    }
                } else {
                    #pragma omp simd reduction(+ : s, p)
                    for (long i = first; i < last; i++) {
                        s += grad[i];
                        p += grad[i] * (in[i] - mean);
                    }
                }
                sum += s;
                product += p;
            }
        }
        dbias[c] = static_cast<float>(sum);
        dweight[c] = static_cast<float>(product * inverse);
        const float scale = static_cast<float>(weight[c] * inverse);
        // The batch's statistics move with x: dx = scale (g - mean(g) - (x - mean) mean(g (x - mean)) / variance).
        const float offset = d.training ? static_cast<float>(sum / n) : 0.f;
        const float slope = d.training ? static_cast<float>(product / n * inverse * inverse) : 0.f;
        for (long b = 0; b < d.batch; b++) {
            const float *in = d.run(x, b, c), *out = d.run(y, b, c), *grad = d.run(dy, b, c);
            float* to = d.run(dx, b, c);
            float* rest = dresidual ? d.run(dresidual, b, c) : nullptr;
            if (rest) {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) {
                    const float g = out[i] > 0.f ? grad[i] : 0.f;
                    rest[i] = g;
                    to[i] = scale * (g - offset - (in[i] - mean) * slope);
                }
            } else if (d.relu) {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) {
                    const float g = out[i] > 0.f ? grad[i] : 0.f;
                    to[i] = scale * (g - offset - (in[i] - mean) * slope);
                }
            } else {
                #pragma omp simd
                for (long i = 0; i < d.inner; i++) to[i] = scale * (grad[i] - offset - (in[i] - mean) * slope);
            }
        }
    }
}

}  // namespace jea
