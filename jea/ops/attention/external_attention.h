// External attention: two small memories, a double normalisation between them, and the gradient. See external_attention.py.
#pragma once
#include <algorithm>
#include <omp.h>
#include <vector>
#include "attention/double_norm.h"
#include "products/linear.h"

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

// Threads share the positions where each gets a few hundred: oneDNN's own division of these shapes is slower.
inline long shares(long rows) { return std::max(1L, std::min<long>(omp_get_max_threads(), rows / 256)); }

// And back: m^T a, or a m.
inline void to_channels(const ExternalAttention& d, const float* a, const float* m, float* y) {
    if (d.channels_first) {
        for (long p = 0; p < d.batch; p++)
            product({d.channels, d.memories, d.positions, true, false}, m, a + d.map(p), nullptr, nullptr,
                    y + d.feature(p));
        return;
    }
    const long count = shares(d.rows());
    #pragma omp parallel for if (count > 1)
    for (long i = 0; i < count; i++) {
        const long first = d.rows() * i / count, rows = d.rows() * (i + 1) / count - first;
        dnnl_sgemm('N', 'N', rows, d.channels, d.memories, 1.f, a + first * d.memories, d.memories, m, d.channels, 0.f,
                   y + first * d.channels, d.channels);
    }
}

// dm (S, C): the sum over all positions of map times feature.
inline void memory_gradient(const ExternalAttention& d, const float* map, const float* feature, float* dm) {
    const long size = d.memories * d.channels, count = d.channels_first ? d.batch : shares(d.rows());
    std::vector<float> parts((count - 1) * size);
    const auto part = [&](long i) { return i == 0 ? dm : &parts[(i - 1) * size]; };
    if (d.channels_first) {
        for (long p = 0; p < count; p++)
            product({d.memories, d.positions, d.channels, false, true}, map + d.map(p), feature + d.feature(p), nullptr,
                    nullptr, part(p));
    } else {
        #pragma omp parallel for if (count > 1)
        for (long i = 0; i < count; i++) {
            const long first = d.rows() * i / count, rows = d.rows() * (i + 1) / count - first;
            dnnl_sgemm('T', 'N', d.memories, d.channels, rows, 1.f, map + first * d.memories, d.memories,
                       feature + first * d.channels, d.channels, 0.f, part(i), d.channels);
        }
    }
    for (long i = 1; i < count; i++) {
        const float* other = part(i);
        #pragma omp simd
        for (long j = 0; j < size; j++) dm[j] += other[j];
    }
}

// `map` and `denominators` are kept for the gradient.
inline void external_attention_forward(const ExternalAttention& d, float eps, const float* x, const float* m_k,
                                       const float* m_v, float* y, float* map, float* denominators) {
    to_memories(d, x, m_k, map);
    double_norm_forward(d.norm(), eps, map, map, denominators);
    to_channels(d, map, m_v, y);
}

// `dmap` is scratch of the map's size.
inline void external_attention_backward(const ExternalAttention& d, const float* x, const float* m_k, const float* m_v,
                                        const float* map, const float* denominators, const float* dy, float* dx,
                                        float* dm_k, float* dm_v, float* dmap) {
    memory_gradient(d, map, dy, dm_v);
    to_memories(d, dy, m_v, dmap);
    double_norm_backward(d.norm(), map, denominators, dmap, dmap);
    memory_gradient(d, dmap, x, dm_k);
    to_channels(d, dmap, m_k, dx);
}

}  // namespace jea
