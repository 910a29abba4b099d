// The sizes of a BatchNorm over (batch, channels, inner). For the CPU and CUDA, see batch_norm.py.
#pragma once
#include "common/both.h"

namespace jea {

struct BatchNorm {
    long batch, channels, inner;
    bool training, relu;
    double eps;
    long splits = 1;  // of a channel, on CUDA

    JEA_BOTH long count() const { return batch * inner; }
    const float* run(const float* x, long b, long c) const { return x + (b * channels + c) * inner; }
    float* run(float* x, long b, long c) const { return x + (b * channels + c) * inner; }
};

}  // namespace jea
