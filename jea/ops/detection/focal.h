// Sigmoid focal loss on the CPU. See sigmoid_focal_loss.py; focal.cuh defines the same for CUDA.
#pragma once
#include <cmath>

#ifdef __CUDACC__
#define JEA_BOTH __host__ __device__
#else
#define JEA_BOTH
#endif

namespace jea {

struct Focal {
    long rows, classes;
    float alpha, gamma;
};

// The loss of one logit, and its derivative in `slope`. With p_t = sigmoid(s), s = the logit, or its negative where it is
// no target: loss = a (1 - p_t)^gamma log(1 + e^-s).
JEA_BOTH inline float focal_term(float logit, bool target, float alpha, float gamma, float& slope) {
    const float s = target ? logit : -logit, e = expf(-fabsf(s));
    const float p = (s >= 0.f ? 1.f : e) / (1.f + e), q = (s >= 0.f ? e : 1.f) / (1.f + e);  // p_t and 1 - p_t
    const float entropy = log1pf(e) + (s >= 0.f ? 0.f : -s);
    const float share = gamma == 2.f ? q * q : powf(q, gamma), weight = target ? alpha : 1.f - alpha;
    const float down = -weight * share * (gamma * p * entropy + q);
    slope = target ? down : -down;
    return weight * share * entropy;
}

#ifndef __CUDACC__
// loss (rows,): the sums over the classes; labels (rows,): the class, -1 for none, -2 for a row that does not count.
inline void focal_loss(const Focal& d, const float* logits, const int* labels, float* loss) {
    #pragma omp parallel for
    for (long r = 0; r < d.rows; r++) {
        double sum = 0.;
        for (long c = 0; c < d.classes && labels[r] > -2; c++) {
            float slope;
            sum += focal_term(logits[r * d.classes + c], c == labels[r], d.alpha, d.gamma, slope);
        }
        loss[r] = static_cast<float>(sum);
    }
}

inline void focal_loss_backward(const Focal& d, const float* logits, const int* labels, const float* dloss,
                                float* dlogits) {
    #pragma omp parallel for
    for (long r = 0; r < d.rows; r++)
        for (long c = 0; c < d.classes; c++) {
            float slope;
            focal_term(logits[r * d.classes + c], c == labels[r], d.alpha, d.gamma, slope);
            dlogits[r * d.classes + c] = labels[r] > -2 ? dloss[r] * slope : 0.f;
        }
}
#endif

}  // namespace jea
