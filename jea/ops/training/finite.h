// See finite.py.
#pragma once
#include "training/finite_rules.h"

namespace jea {

inline void gather_scalars(const Scalars& from, double* to) { gather(from, to); }
inline void judge_scalars(const double* values, long count, const float* before, float* next) {
    judge(values, count, before, next);
}
inline void limit_norm(const double* squares, long count, double largest, const float* before, float* next,
                       double* norm) {
    limit(squares, count, largest, before, next, norm);
}

}  // namespace jea
