// Bilinear resize with aligned corners and its gradient, one plane (H x W) at a time. See resize.py.
#pragma once
#include <algorithm>
#include <vector>

namespace jea {

// For each output index: the lower source index and the weight of the upper one, computed as PyTorch does
// (float32 scale, float32 position), so that the results agree to the last digits.
struct ResizeAxis {
    std::vector<int> low, high;
    std::vector<float> weight;

    ResizeAxis(int in, int out) : low(out), high(out), weight(out) {
        const float scale = out > 1 ? static_cast<float>(in - 1) / (out - 1) : 0.f;
        for (int i = 0; i < out; i++) {
            const float position = scale * i;
            low[i] = std::min(static_cast<int>(position), in - 1);
            high[i] = low[i] + (low[i] < in - 1 ? 1 : 0);
            weight[i] = position - low[i];
        }
    }
};

inline void resize_forward(const float* x, float* y, long planes, int h, int w, int out_h, int out_w) {
    const ResizeAxis rows(h, out_h), columns(w, out_w);
    #pragma omp parallel for collapse(2)
    for (long p = 0; p < planes; p++)
        for (int i = 0; i < out_h; i++) {
            const float* top = x + (p * h + rows.low[i]) * w;
            const float* bottom = x + (p * h + rows.high[i]) * w;
            const float b = rows.weight[i], a = 1.f - b;
            float* out = y + (p * out_h + i) * out_w;
            for (int j = 0; j < out_w; j++) {
                const int l = columns.low[j], r = columns.high[j];
                const float d = columns.weight[j], c = 1.f - d;
                out[j] = a * (c * top[l] + d * top[r]) + b * (c * bottom[l] + d * bottom[r]);
            }
        }
}

// dx += (d resize / d x)^T dy. Planes are independent, so that each thread writes its own.
inline void resize_backward(const float* dy, float* dx, long planes, int h, int w, int out_h, int out_w) {
    const ResizeAxis rows(h, out_h), columns(w, out_w);
    #pragma omp parallel for
    for (long p = 0; p < planes; p++) {
        float* base = dx + p * h * w;
        std::fill(base, base + static_cast<long>(h) * w, 0.f);
        for (int i = 0; i < out_h; i++) {
            float* top = base + static_cast<long>(rows.low[i]) * w;
            float* bottom = base + static_cast<long>(rows.high[i]) * w;
            const float b = rows.weight[i], a = 1.f - b;
            const float* g = dy + (p * out_h + i) * out_w;
            for (int j = 0; j < out_w; j++) {
                const int l = columns.low[j], r = columns.high[j];
                const float d = columns.weight[j], c = 1.f - d;
                top[l] += a * c * g[j];
                top[r] += a * d * g[j];
                bottom[l] += b * c * g[j];
                bottom[r] += b * d * g[j];
            }
        }
    }
}

}  // namespace jea
