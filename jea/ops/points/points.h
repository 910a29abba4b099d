// Farthest points, nearest neighbours, gathering, interpolation and maxima of point clouds on the CPU. See
// farthest_point.py, knn.py, gather_points.py, three_interpolate.py and max_last.py. points.cuh defines the same
// functions for CUDA.
//
// A float* without a name is scratch memory of the CUDA form.
// Jittor compiles with -Ofast, under which comparisons with NaN mean nothing: no index depends on one being right.
#pragma once
#include <algorithm>
#include <cfloat>
#include <climits>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace jea {

// n points (x, y, z) as three arrays.
struct Coordinates {
    std::vector<float> x, y, z;

    Coordinates(const float* points, long n) : x(n), y(n), z(n) {
        for (long i = 0; i < n; i++) {
            x[i] = points[3 * i];
            y[i] = points[3 * i + 1];
            z[i] = points[3 * i + 2];
        }
    }
};

// A squared distance as an integer of the same order; NaN comes after infinity.
inline uint32_t distance_bits(float square) {
    uint32_t bits;
    std::memcpy(&bits, &square, sizeof bits);
    return bits & 0x7fffffffu;
}

constexpr float kNearZero = 1e-3f;  // |p|^2 up to here is upstream's mark of an empty point

// chosen (batch, m): point 0, then each time the point farthest from the chosen ones, the first of equals.
inline void farthest_points(const float* points, int* chosen, float*, long batch, long n, long m, bool skip_near_zero) {
    #pragma omp parallel for
    for (long b = 0; b < batch; b++) {
        Coordinates at(points + b * n * 3, n);
        const float *xs = at.x.data(), *ys = at.y.data(), *zs = at.z.data();
        // Squared distance to the nearest chosen point. -1 stays the least for ever: such a point is never chosen.
        std::vector<float> nearest(n);
        for (long i = 0; i < n; i++) {
            const float square = xs[i] * xs[i] + ys[i] * ys[i] + zs[i] * zs[i];
            const bool finite = distance_bits(square) < 0x7f800000u;
            if (!finite) at.x[i] = at.y[i] = at.z[i] = 0.f;
            nearest[i] = !finite || (skip_near_zero && square <= kNearZero) ? -1.f : FLT_MAX;
        }
        float* distance = nearest.data();
        long last = 0;
        for (long j = 0; j < m; j++) {
            chosen[b * m + j] = static_cast<int>(last);
            const float x = xs[last], y = ys[last], z = zs[last];
            float most = -FLT_MAX;
            #pragma omp simd reduction(max : most)
            for (long i = 0; i < n; i++) {
                const float dx = xs[i] - x, dy = ys[i] - y, dz = zs[i] - z;
                const float square = dx * dx + dy * dy + dz * dz;
                distance[i] = square < distance[i] ? square : distance[i];
                most = distance[i] > most ? distance[i] : most;
            }
            int first = INT_MAX;
            #pragma omp simd reduction(min : first)
            for (long i = 0; i < n; i++) {
                const int index = distance[i] == most ? static_cast<int>(i) : INT_MAX;
                first = index < first ? index : first;
            }
            last = first == INT_MAX ? 0 : first;
        }
    }
}

// The k nearest of a cloud to points that are asked for one after another. Keys are (distance, index): ties go to the
// first index, and the order is a total one.
class NearestPoints {
  public:
    NearestPoints(const float* points, long n, long k)
        : at_(points, n), n_(n), k_(k), distances_((n + kBlock - 1) / kBlock * kBlock, UINT32_MAX),
          kept_(std::min(n, 2 * k + kBlock) + kBlock) {}

    // The sorted keys, distance << 32 | index.
    const uint64_t* find(const float* query) {
        const float *xs = at_.x.data(), *ys = at_.y.data(), *zs = at_.z.data();
        const float x = query[0], y = query[1], z = query[2];
        uint32_t* distances = distances_.data();
        #pragma omp simd
        for (long i = 0; i < n_; i++) {
            const float dx = xs[i] - x, dy = ys[i] - y, dz = zs[i] - z;
            distances[i] = distance_bits(dx * dx + dy * dy + dz * dz);
        }
        long count = 0;
        uint32_t limit = UINT32_MAX;  // what is not below it, and comes later, is not among the k nearest
        const long room = static_cast<long>(kept_.size()) - kBlock;
        for (long block = 0; block < n_; block += kBlock) {
            uint32_t least = UINT32_MAX;
            #pragma omp simd reduction(min : least)
            for (long i = block; i < block + kBlock; i++) least = distances[i] < least ? distances[i] : least;
            if (least >= limit) continue;
            for (long i = block; i < block + kBlock; i++) {
                kept_[count] = static_cast<uint64_t>(distances[i]) << 32 | static_cast<uint64_t>(i);
                count += distances[i] < limit;
            }
            if (count > k_ && count > room - kBlock) limit = shrink(count);
        }
        if (count > k_) shrink(count);
        std::sort(kept_.begin(), kept_.begin() + k_);
        return kept_.data();
    }

  private:
    static constexpr long kBlock = 16;

    uint32_t shrink(long& count) {
        std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.begin() + count);
        count = k_;
        return static_cast<uint32_t>(kept_[k_ - 1] >> 32);
    }

    Coordinates at_;
    long n_, k_;
    std::vector<uint32_t> distances_;  // filled up to whole blocks with what is never below the limit
    std::vector<uint64_t> kept_;
};

// calls use(b, i, keys) for each of the m queries of each cloud; keys as of NearestPoints.
template <class Use>
inline void for_nearest(const float* queries, const float* points, long batch, long m, long n, long k, Use use) {
    const long chunk = 64, chunks = (m + chunk - 1) / chunk;
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < chunks; c++) {
            NearestPoints nearest(points + b * n * 3, n, k);
            for (long i = c * chunk; i < std::min(m, (c + 1) * chunk); i++)
                use(b, i, nearest.find(queries + (b * m + i) * 3));
        }
}

// index (batch, m, k): the points nearest to each query, ascending.
inline void nearest_points(const float* queries, const float* points, int* index, long batch, long m, long n, long k) {
    for_nearest(queries, points, batch, m, n, k, [=](long b, long i, const uint64_t* keys) {
        int* to = index + (b * m + i) * k;
        for (long j = 0; j < k; j++) to[j] = static_cast<int>(keys[j] & UINT32_MAX);
    });
}

constexpr float kInterpolationEps = 1e-8f;  // upstream's, so that a distance of zero has a weight

// index and weights (batch, m, k): 1 / (d^2 + eps) of the k nearest known points, divided by their sum.
inline void interpolation_weights(const float* unknown, const float* known, int* index, float* weights, long batch,
                                  long m, long n, long k) {
    for_nearest(unknown, known, batch, m, n, k, [=](long b, long i, const uint64_t* keys) {
        const long first = (b * m + i) * k;
        float sum = 0.f;
        for (long j = 0; j < k; j++) {
            const uint32_t bits = static_cast<uint32_t>(keys[j] >> 32);
            float square;
            std::memcpy(&square, &bits, sizeof square);
            index[first + j] = static_cast<int>(keys[j] & UINT32_MAX);
            weights[first + j] = 1.f / (square + kInterpolationEps);
            sum += weights[first + j];
        }
        for (long j = 0; j < k; j++) weights[first + j] /= sum;
    });
}

// Throws unless all are in [0, n). Before any parallel region: an exception cannot leave one.
inline void check_indices(const char* who, const int* index, long count, long n) {
    int least = INT_MAX, most = INT_MIN;
    #pragma omp simd reduction(min : least) reduction(max : most)
    for (long i = 0; i < count; i++) {
        least = index[i] < least ? index[i] : least;
        most = index[i] > most ? index[i] : most;
    }
    if (count && (least < 0 || most >= n))
        throw std::runtime_error(std::string(who) + ": index " + std::to_string(least < 0 ? least : most) +
                                 " is not one of the " + std::to_string(n) + " points (0 to " + std::to_string(n - 1) +
                                 ")");
}

// y (batch, channels, groups, k) from features (batch, channels, n) and index (batch, groups, k); plus centres
// (batch, channels, groups) unless null.
inline void gather(const float* features, const int* index, const float* centres, float* y, long batch, long channels,
                   long n, long groups, long k) {
    check_indices("gather_points", index, batch * groups * k, n);
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < channels; c++) {
            const long row = b * channels + c;
            const float* from = features + row * n;
            for (long g = 0; g < groups; g++) {
                const float add = centres ? centres[row * groups + g] : 0.f;
                const int* at = index + (b * groups + g) * k;
                float* to = y + (row * groups + g) * k;
                #pragma omp simd
                for (long j = 0; j < k; j++) to[j] = from[at[j]] + add;
            }
        }
}

// The gradients of features and, unless null, of centres. A row belongs to one thread: the order of its sums is fixed.
inline void gather_backward(const float* dy, const int* index, float* dfeatures, float* dcentres, float*, long batch,
                            long channels, long n, long groups, long k) {
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < channels; c++) {
            const long row = b * channels + c;
            float* to = dfeatures + row * n;
            std::fill(to, to + n, 0.f);
            for (long g = 0; g < groups; g++) {
                const int* at = index + (b * groups + g) * k;
                const float* from = dy + (row * groups + g) * k;
                float sum = 0.f;
                for (long j = 0; j < k; j++) {
                    to[at[j]] += from[j];
                    sum += from[j];
                }
                if (dcentres) dcentres[row * groups + g] = sum;
            }
        }
}

// y (batch, channels, m) = sum_j weights[b, i, j] features[b, c, index[b, i, j]], features (batch, channels, n).
inline void interpolate(const float* features, const int* index, const float* weights, float* y, long batch,
                        long channels, long n, long m, long k) {
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < channels; c++) {
            const float* from = features + (b * channels + c) * n;
            float* to = y + (b * channels + c) * m;
            const int* at = index + b * m * k;
            const float* weight = weights + b * m * k;
            for (long i = 0; i < m; i++) {
                float sum = 0.f;
                for (long j = 0; j < k; j++) sum += weight[i * k + j] * from[at[i * k + j]];
                to[i] = sum;
            }
        }
}

inline void interpolate_backward(const float* dy, const int* index, const float* weights, float* dfeatures, float*,
                                 long batch, long channels, long n, long m, long k) {
    #pragma omp parallel for collapse(2)
    for (long b = 0; b < batch; b++)
        for (long c = 0; c < channels; c++) {
            float* to = dfeatures + (b * channels + c) * n;
            std::fill(to, to + n, 0.f);
            const float* from = dy + (b * channels + c) * m;
            const int* at = index + b * m * k;
            const float* weight = weights + b * m * k;
            for (long i = 0; i < m; i++)
                for (long j = 0; j < k; j++) to[at[i * k + j]] += weight[i * k + j] * from[i];
        }
}

// A float as an integer of the same order, with NaN above all.
inline int32_t order_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const int32_t order = bits ^ ((bits >> 31) & 0x7fffffff);
    return (bits & 0x7fffffff) > 0x7f800000 ? INT32_MAX : order;
}

// y (rows) and its place in each row of x (rows, k), the first of equals.
inline void max_last(const float* x, float* y, int* places, long rows, long k) {
    #pragma omp parallel for
    for (long row = 0; row < rows; row++) {
        const float* from = x + row * k;
        int32_t most = INT32_MIN;
        #pragma omp simd reduction(max : most)
        for (long j = 0; j < k; j++) most = std::max(most, order_of(from[j]));
        int place = INT_MAX;
        #pragma omp simd reduction(min : place)
        for (long j = 0; j < k; j++) place = std::min(place, order_of(from[j]) == most ? static_cast<int>(j) : INT_MAX);
        y[row] = from[place];
        places[row] = place;
    }
}

inline void max_last_backward(const float* dy, const int* places, float* dx, long rows, long k) {
    #pragma omp parallel for
    for (long row = 0; row < rows; row++) {
        std::fill(dx + row * k, dx + (row + 1) * k, 0.f);
        dx[row * k + places[row]] = dy[row];
    }
}

}  // namespace jea
