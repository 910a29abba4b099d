// What an update does to one element, and where the arrays of up to kTogether Vars stand. See updates.py.
#pragma once
#include <cmath>
#include "common/both.h"

namespace jea {

constexpr int kTogether = 16;

// Input k of Var t is in[k][t], with count[t] elements; number[t] is one more number of that Var.
template <int IN, int OUT>
struct Arrays {
    const float* in[IN][kTogether];
    float* out[OUT][kTogether];
    long count[kTogether];
    float number[kTogether];
};

// Divisions and roots that --use_fast_math leaves exact.
JEA_BOTH inline float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

JEA_BOTH inline float root(float a) {
#ifdef __CUDA_ARCH__
    return __fsqrt_rn(a);
#else
    return std::sqrt(a);
#endif
}

// A rule: x are the inputs of an element, y the outputs. kGradient is the input that is scaled, -1: none. Where nothing
// may change, output k is input kBefore[k].

// x: parameter, gradient, velocity; y: parameter, velocity.
struct Sgd {
    static constexpr int kIn = 3, kOut = 2, kGradient = 1;
    float rate, momentum, decay, undamped;
    bool nesterov;

    JEA_BOTH static constexpr int before(int k) { return k == 0 ? 0 : 2; }
    JEA_BOTH void operator()(const float* x, float* y, float) const {
        const float step = x[0] * decay + x[1];
        y[1] = momentum * x[2] + step * undamped;
        y[0] = nesterov ? x[0] - (step + momentum * y[1]) * rate : x[0] - y[1] * rate;
    }
};

// x: parameter, gradient, second moment, first moment; y: parameter, second moment, first moment. `decay` is added to
// the gradient, `kept` multiplies the parameter; root_scale divides the root of the second moment.
struct Adam {
    static constexpr int kIn = 4, kOut = 3, kGradient = 1;
    float step, beta1, beta2, rest1, rest2, epsilon, decay, kept, root_scale;

    JEA_BOTH static constexpr int before(int k) { return k == 0 ? 0 : k + 1; }
    JEA_BOTH void operator()(const float* x, float* y, float) const {
        const float g = x[0] * decay + x[1];
        y[2] = beta1 * x[3] + rest1 * g;
        y[1] = beta2 * x[2] + rest2 * g * g;
        y[0] = x[0] * kept - quotient(step * y[2], quotient(root(y[1]), root_scale) + epsilon);
    }
};

// x: old, new; y: old + (number new - old) share.
struct Move {
    static constexpr int kIn = 2, kOut = 1, kGradient = -1;
    float share;

    JEA_BOTH static constexpr int before(int) { return 0; }
    JEA_BOTH void operator()(const float* x, float* y, float number) const {
        y[0] = x[0] + (x[1] * number - x[0]) * share;
    }
};

}  // namespace jea
