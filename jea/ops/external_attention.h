// External attention: two small memories, a double normalisation between them, and the gradient. See external_attention.py.
#pragma once
#include <vector>
#include "double_norm.h"
#include "linear.h"

namespace jea {

// x is (batch, positions, channels) or, channels_first, (batch, channels, positions).
struct ExternalAttention {
    long batch, channels, positions, memories;
    bool channels_first;

    DoubleNorm norm() const { return {batch, memories, positions, channels_first, 1}; }
    // Channels last, all positions of the batch are the rows of one matrix.
    long parts() const { return channels_first ? batch : 1; }
    long rows() const { return channels_first ? positions : batch * positions; }
    long feature(long part) const { return part * channels * positions; }
    long map(long part) const { return part * memories * positions; }
};

// from (channels) to (memories) by m (S, C): m x, or x m^T.
inline void to_memories(const ExternalAttention& d, const float* x, const float* m, float* y) {
    for (long p = 0; p < d.parts(); p++) {
        const float* in = x + d.feature(p);
        float* out = y + d.map(p);
        if (d.channels_first) product({d.memories, d.channels, d.rows(), false, false}, m, in, nullptr, nullptr, out);
        else product({d.rows(), d.channels, d.memories, false, true}, in, m, nullptr, nullptr, out);
    }
}

// And back: m^T a, or a m.
inline void to_channels(const ExternalAttention& d, const float* a, const float* m, float* y) {
    for (long p = 0; p < d.parts(); p++) {
        const float* in = a + d.map(p);
        float* out = y + d.feature(p);
        if (d.channels_first) product({d.channels, d.memories, d.rows(), true, false}, m, in, nullptr, nullptr, out);
        else product({d.rows(), d.memories, d.channels, false, false}, in, m, nullptr, nullptr, out);
    }
}

// dm (S, C): the sum over all positions of map times feature.
inline void memory_gradient(const ExternalAttention& d, const float* map, const float* feature, float* dm) {
    const long count = d.memories * d.channels;
    std::vector<float> part(d.parts() > 1 ? count : 0);
    for (long p = 0; p < d.parts(); p++) {
        float* to = p == 0 ? dm : part.data();
        const float *a = map + d.map(p), *f = feature + d.feature(p);
        product({d.memories, d.rows(), d.channels, !d.channels_first, d.channels_first}, a, f, nullptr, nullptr, to);
        if (p == 0) continue;
        #pragma omp simd
        for (long i = 0; i < count; i++) dm[i] += part[i];
    }
}

// `map` and `denominators` are kept for the gradient; `logits` is scratch of the map's size.
inline void external_attention_forward(const ExternalAttention& d, float eps, const float* x, const float* m_k,
                                       const float* m_v, float* y, float* map, float* denominators, float* logits) {
    to_memories(d, x, m_k, logits);
    double_norm_forward(d.norm(), eps, logits, map, denominators);
    to_channels(d, map, m_v, y);
}

// `scratch` has twice the map's size.
inline void external_attention_backward(const ExternalAttention& d, const float* x, const float* m_k, const float* m_v,
                                        const float* map, const float* denominators, const float* dy, float* dx,
                                        float* dm_k, float* dm_v, float* scratch) {
    float *dmap = scratch, *dlogits = scratch + d.batch * d.memories * d.positions;
    memory_gradient(d, map, dy, dm_v);
    to_memories(d, dy, m_v, dmap);
    double_norm_backward(d.norm(), map, denominators, dmap, dlogits);
    memory_gradient(d, dlogits, x, dm_k);
    to_channels(d, dlogits, m_k, dx);
}

}  // namespace jea
