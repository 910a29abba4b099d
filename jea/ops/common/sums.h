// Sums for the statistics of normalisation.
#pragma once
#include <algorithm>

namespace jea {

constexpr long kSumBlock = 4096;  // a float32 sum of this many, then float64

// Adds the sums of x - pivot and of its square.
inline void add_sums(const float* x, long count, float pivot, double& sum, double& squares) {
    for (long first = 0; first < count; first += kSumBlock) {
        const long last = std::min(first + kSumBlock, count);
        float s = 0.f, q = 0.f;
        #pragma omp simd reduction(+ : s, q)
        for (long i = first; i < last; i++) {
            const float v = x[i] - pivot;
            s += v;
            q += v * v;
        }
        sum += s;
        squares += q;
    }
}

}  // namespace jea
