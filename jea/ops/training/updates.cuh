// Updates of many Vars in one launch. See updates.py.
//
// A block takes kThreads * kEach elements of one Var; which one, it finds among the first blocks of the Vars.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"
#include "training/updates_rules.h"

namespace jea {

constexpr int kEach = 8;

struct FirstBlocks {
    unsigned of[kTogether + 1];
};

template <class Rule>
__global__ void __launch_bounds__(kThreads)
update_elements(Rule rule, Arrays<Rule::kIn, Rule::kOut> a, FirstBlocks first, const float* __restrict__ control) {
    int t = 0;
    while (blockIdx.x >= first.of[t + 1]) t++;
    const bool changes = !control || control[0] != 0.f;
    const float factor = control ? control[1] : 1.f;
    const long start = static_cast<long>(blockIdx.x - first.of[t]) * kThreads * kEach + threadIdx.x;
    const long count = a.count[t];
    float x[kEach][Rule::kIn];
    #pragma unroll
    for (int j = 0; j < kEach; j++)
        #pragma unroll
        for (int k = 0; k < Rule::kIn; k++)
            x[j][k] = start + j * kThreads < count ? a.in[k][t][start + j * kThreads] : 0.f;
    #pragma unroll
    for (int j = 0; j < kEach; j++) {
        if (start + j * kThreads >= count) break;
        float y[Rule::kOut];
        if (Rule::kGradient >= 0) x[j][Rule::kGradient < 0 ? 0 : Rule::kGradient] *= factor;
        rule(x[j], y, a.number[t]);
        #pragma unroll
        for (int k = 0; k < Rule::kOut; k++)
            a.out[k][t][start + j * kThreads] = changes ? y[k] : x[j][Rule::before(k)];
    }
}

template <class Rule>
void update(const Rule& rule, const Arrays<Rule::kIn, Rule::kOut>& a, const float* control) {
    FirstBlocks first{};
    for (int t = 0; t < kTogether; t++) first.of[t + 1] = first.of[t] + blocks_of(a.count[t], kThreads * kEach);
    if (first.of[kTogether] > 0) update_elements<<<first.of[kTogether], kThreads>>>(rule, a, first, control);
}

}  // namespace jea
