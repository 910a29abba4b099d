// Scalars that are told together, and what they say about an update. See finite.py.
#pragma once
#include <cmath>
#include <cstring>
#include "common/both.h"

namespace jea {

constexpr int kScalars = 16;

struct Scalars {
    const void* at[kScalars];
    bool wide[kScalars];  // float64, else float32
    int count;            // of those in `at`
    double extra;         // told after them
};

// By the bits: compilers that may leave out what NaN needs leave out comparisons.
JEA_BOTH inline bool is_finite(double value) {
    unsigned long long bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits >> 52 & 0x7ff) != 0x7ff;
}

JEA_BOTH inline double not_a_number() {
    const unsigned long long bits = 0x7ff8000000000000ull;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

JEA_BOTH inline void gather(const Scalars& from, double* to) {
    for (int i = 0; i < from.count; i++)
        to[i] = from.wide[i] ? *static_cast<const double*>(from.at[i]) : *static_cast<const float*>(from.at[i]);
    to[from.count] = from.extra;
}

// next: 1 where all are finite and `before` (null: 1) said so too, else 0; and the factor 1 for gradients.
JEA_BOTH inline void judge(const double* values, long count, const float* before, float* next) {
    bool finite = !before || before[0] != 0.f;
    for (long i = 0; i < count; i++) finite = is_finite(values[i]) && finite;
    next[0] = finite ? 1.f : 0.f;
    next[1] = 1.f;
}

// The norm of gradients whose sums of squares these are, NaN where one is not finite; next: as judge, with the factor
// that makes the norm `largest` at most.
JEA_BOTH inline void limit(const double* squares, long count, double largest, const float* before, float* next,
                           double* norm) {
    double sum = 0.;
    for (long i = 0; i < count; i++) sum += squares[i];
    const bool finite = is_finite(sum);
    const double length = finite ? sqrt(sum) : 0.;
    norm[0] = finite ? length : not_a_number();
    next[0] = finite && before[0] != 0.f ? 1.f : 0.f;
    next[1] = length > largest ? static_cast<float>(largest / (length + 1e-6)) : 1.f;
}

}  // namespace jea
