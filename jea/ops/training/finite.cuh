// A thread is enough: some scalars, or a number for each parameter. See finite.py.
#pragma once
#include <cuda_runtime.h>
#include "training/finite_rules.h"

namespace jea {

__global__ void gather_kernel(Scalars from, double* to) { gather(from, to); }
__global__ void judge_kernel(const double* values, long count, const float* before, float* next) {
    judge(values, count, before, next);
}
__global__ void limit_kernel(const double* squares, long count, double largest, const float* before, float* next,
                             double* norm) {
    limit(squares, count, largest, before, next, norm);
}

inline void gather_scalars(const Scalars& from, double* to) { gather_kernel<<<1, 1>>>(from, to); }
inline void judge_scalars(const double* values, long count, const float* before, float* next) {
    judge_kernel<<<1, 1>>>(values, count, before, next);
}
inline void limit_norm(const double* squares, long count, double largest, const float* before, float* next,
                       double* norm) {
    limit_kernel<<<1, 1>>>(squares, count, largest, before, next, norm);
}

}  // namespace jea
