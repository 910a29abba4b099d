// Updates of many Vars at once. See updates.py.
#pragma once
#include "training/updates_rules.h"

namespace jea {

// control: whether anything changes (0: nothing), and the factor of the gradients; null: yes, and 1.
template <class Rule>
void update(const Rule& rule, const Arrays<Rule::kIn, Rule::kOut>& a, const float* control) {
    const bool changes = !control || control[0] != 0.f;
    const float factor = control ? control[1] : 1.f;
    for (int t = 0; t < kTogether; t++) {
        const long count = a.count[t];
        #pragma omp parallel for simd if (count > 16384)
        for (long i = 0; i < count; i++) {
            float x[Rule::kIn], y[Rule::kOut];
            for (int k = 0; k < Rule::kIn; k++) x[k] = a.in[k][t][i];
            if (Rule::kGradient >= 0) x[Rule::kGradient < 0 ? 0 : Rule::kGradient] *= factor;
            rule(x, y, a.number[t]);
            for (int k = 0; k < Rule::kOut; k++) a.out[k][t][i] = changes ? y[k] : x[Rule::before(k)];
        }
    }
}

}  // namespace jea
