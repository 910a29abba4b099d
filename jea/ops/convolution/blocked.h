// Channel-blocked activations (batch, channels / L, positions, L): conversion, BatchNorm, maximum. See blocked.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

namespace jea {

// The L channels of a block at one position, as one value. Unaligned: Jittor's memory starts where it likes.
template <long L> struct Lanes;
template <> struct Lanes<8> {
    typedef float Float __attribute__((vector_size(32), aligned(4), may_alias));
    typedef int32_t Int __attribute__((vector_size(32), aligned(4), may_alias));
};
template <> struct Lanes<16> {
    typedef float Float __attribute__((vector_size(64), aligned(4), may_alias));
    typedef int32_t Int __attribute__((vector_size(64), aligned(4), may_alias));
};

// (batch, channels, positions) -> (batch, channels / L, positions, L), or back.
template <bool to>
inline void reorder(const float* x, float* y, long batches_and_groups, long positions, long L) {
    #pragma omp parallel for
    for (long g = 0; g < batches_and_groups; g++)
        for (long first = 0; first < positions; first += 64) {
            const long last = std::min(first + 64, positions);
            for (long l = 0; l < L; l++)
                for (long n = first; n < last; n++) {
                    const long plain = (g * L + l) * positions + n, blocked = (g * positions + n) * L + l;
                    y[to ? blocked : plain] = x[to ? plain : blocked];
                }
        }
}

struct BlockedNorm {
    long batch, groups, positions;  // groups of L channels
    bool training, relu;
    double eps;

    long rows() const { return batch * positions; }
    // A group's rows are cut into pieces only where there are more threads than groups.
    long pieces() const {
        const long threads = omp_get_max_threads();
        return groups >= threads || rows() < 1024 ? 1 : (threads + groups - 1) / groups;
    }
    // f(offset) of each of a group's rows of a piece, in floats; `most` rows at a time, then flush().
    template <long L, class F, class Flush>
    void each_row(long group, long piece, F f, Flush flush, long most = 256) const {
        const long n = rows(), k = pieces(), end = (piece + 1) * n / k;
        for (long row = piece * n / k; row < end;) {
            const long b = row / positions, i = row % positions;
            const long count = std::min(std::min(positions - i, end - row), most);
            const long first = ((b * groups + group) * positions + i) * L;
            for (long r = 0; r < count; r++) f(first + r * L);
            flush();
            row += count;
        }
    }
};

template <long L> struct ChannelSums {  // of one piece: float32 over some hundred rows, then float64
    typedef typename Lanes<L>::Float Float;
    Float a = {}, b = {};
    double first[L] = {}, second[L] = {};
    void flush() {
        for (long l = 0; l < L; l++) first[l] += a[l], second[l] += b[l];
        a = b = Float{};
    }
    void add(const ChannelSums& other) {
        for (long l = 0; l < L; l++) first[l] += other.first[l], second[l] += other.second[l];
    }
};

template <long L> inline typename Lanes<L>::Float load(const float* p) {
    return *reinterpret_cast<const typename Lanes<L>::Float*>(p);
}
template <long L> inline void put(float* p, typename Lanes<L>::Float v) {
    *reinterpret_cast<typename Lanes<L>::Float*>(p) = v;
}

// max(x, 0) that hands NaN on. By the bits: under -Ofast comparisons with NaN mean nothing.
template <long L> inline typename Lanes<L>::Float relu_or_nan(typename Lanes<L>::Float x) {
    typedef typename Lanes<L>::Int Int;
    Int bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= ~(bits >> 31) | ((bits & 0x7fffffff) > 0x7f800000);
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// dy where y > 0, else 0.
template <long L> inline typename Lanes<L>::Float where_positive(typename Lanes<L>::Float y, typename Lanes<L>::Float dy) {
    typedef typename Lanes<L>::Int Int;
    Int mask, bits;
    std::memcpy(&mask, &y, sizeof mask);
    std::memcpy(&bits, &dy, sizeof bits);
    bits &= mask > 0;
    std::memcpy(&dy, &bits, sizeof dy);
    return dy;
}

// The gradient of what a ReLU has given as y, `count` floats, a multiple of L.
template <long L> void blocked_relu_backward(const float* y, const float* dy, float* dx, long count) {
    #pragma omp parallel for
    for (long i = 0; i < count; i += L) put<L>(dx + i, where_positive<L>(load<L>(y + i), load<L>(dy + i)));
}

// The sums of each channel (groups * L) over all positions: a bias's gradient.
template <long L>
void blocked_channel_sums(long batch, long groups, long positions, const float* x, float* sums) {
    const BlockedNorm d{batch, groups, positions, false, false, 0.};
    #pragma omp parallel for
    for (long g = 0; g < groups; g++) {
        ChannelSums<L> sum;
        for (long p = 0; p < d.pieces(); p++)
            d.each_row<L>(g, p, [&](long i) { sum.a += load<L>(x + i); }, [&] { sum.flush(); });
        for (long l = 0; l < L; l++) sums[g * L + l] = static_cast<float>(sum.first[l]);
    }
}

// Runs the stages of a group one after the other: piece by piece and joined after each.
template <class Piece, class Join>
void in_stages(const BlockedNorm& d, int stages, Piece piece, Join join) {
    const long k = d.pieces();
    if (k == 1) {  // a group stays in the processor's cache between its stages
        #pragma omp parallel for
        for (long g = 0; g < d.groups; g++)
            for (int stage = 0; stage < stages; stage++) piece(stage, g, 0), join(stage, g);
        return;
    }
    for (int stage = 0; stage < stages; stage++) {
        #pragma omp parallel for collapse(2)
        for (long g = 0; g < d.groups; g++)
            for (long p = 0; p < k; p++) piece(stage, g, p);
        for (long g = 0; g < d.groups; g++) join(stage, g);
    }
}

// As batch_norm_forward in batch_norm.h.
template <long L>
void blocked_norm_forward(const BlockedNorm& d, const float* x, const float* weight, const float* bias,
                          const float* running_mean, const float* running_variance, const float* residual, float* y,
                          float* means, float* variances) {
    typedef typename Lanes<L>::Float Float;
    const long k = d.pieces(), n = d.rows();
    std::vector<ChannelSums<L>> sums(d.groups * k);
    std::vector<float> scales(d.groups * L), shifts(d.groups * L);

    const auto piece = [&](int stage, long g, long p) {
        ChannelSums<L>& own = sums[g * k + p];
        if (d.training && stage < 2) {
            const Float pivot = load<L>(stage == 0 ? x + g * d.positions * L : means + g * L);
            own = ChannelSums<L>();
            d.each_row<L>(g, p, [&](long i) {
                const Float v = load<L>(x + i) - pivot;
                own.a += v;
                own.b += v * v;
            }, [&] { own.flush(); });
        } else if (stage == 2) {
            const Float mean = load<L>(means + g * L), scale = load<L>(&scales[g * L]), shift = load<L>(&shifts[g * L]);
            const auto normal = [&](long i) { return (load<L>(x + i) - mean) * scale + shift; };
            const auto each = [&](auto f) { d.each_row<L>(g, p, f, [] {}); };
            if (residual && d.relu) each([&](long i) { put<L>(y + i, relu_or_nan<L>(normal(i) + load<L>(residual + i))); });
            else if (residual) each([&](long i) { put<L>(y + i, normal(i) + load<L>(residual + i)); });
            else if (d.relu) each([&](long i) { put<L>(y + i, relu_or_nan<L>(normal(i))); });
            else each([&](long i) { put<L>(y + i, normal(i)); });
        }
    };
    const auto join = [&](int stage, long g) {
        ChannelSums<L>& all = sums[g * k];
        if (d.training && stage < 2)
            for (long p = 1; p < k; p++) all.add(sums[g * k + p]);
        for (long l = 0, c = g * L; l < L; l++, c++) {
            if (d.training && stage == 0) means[c] = static_cast<float>(x[g * d.positions * L + l] + all.first[l] / n);
            if (stage != 1) continue;
            // Two passes: the squares are of differences from the mean; `rest` is what float32 does not hold of it.
            const double rest = d.training ? all.first[l] / n : 0.;
            const double variance = d.training ? std::max(all.second[l] / n - rest * rest, 0.) : running_variance[c];
            if (!d.training) means[c] = running_mean[c];
            variances[c] = static_cast<float>(variance);
            const double scale = weight[c] / std::sqrt(variance + d.eps);
            scales[c] = static_cast<float>(scale);
            shifts[c] = static_cast<float>(bias[c] - rest * scale);
        }
    };
    in_stages(d, 3, piece, join);
}

// As batch_norm_backward in batch_norm.h.
template <long L>
void blocked_norm_backward(const BlockedNorm& d, const float* x, const float* y, const float* dy, const float* weight,
                           const float* means, const float* variances, float* dx, float* dweight, float* dbias,
                           float* dresidual) {
    typedef typename Lanes<L>::Float Float;
    const long k = d.pieces(), n = d.rows();
    std::vector<ChannelSums<L>> sums(d.groups * k);  // of g and of g (x - mean)
    std::vector<float> scales(d.groups * L), offsets(d.groups * L), slopes(d.groups * L);

    const auto piece = [&](int stage, long group, long p) {
        const Float mean = load<L>(means + group * L);
        const auto gradient = [&](long i) {
            return d.relu ? where_positive<L>(load<L>(y + i), load<L>(dy + i)) : load<L>(dy + i);
        };
        if (stage == 0) {
            ChannelSums<L>& own = sums[group * k + p];
            d.each_row<L>(group, p, [&](long i) {
                const Float g = gradient(i);
                own.a += g;
                own.b += g * (load<L>(x + i) - mean);
            }, [&] { own.flush(); });
            return;
        }
        const Float scale = load<L>(&scales[group * L]), offset = load<L>(&offsets[group * L]),
                    slope = load<L>(&slopes[group * L]);
        d.each_row<L>(group, p, [&](long i) {
            const Float g = gradient(i);
            if (dresidual) put<L>(dresidual + i, g);
            put<L>(dx + i, scale * (g - offset - (load<L>(x + i) - mean) * slope));
        }, [] {});
    };
    const auto join = [&](int stage, long group) {
        if (stage != 0) return;
        ChannelSums<L>& all = sums[group * k];
        for (long p = 1; p < k; p++) all.add(sums[group * k + p]);
        for (long l = 0, c = group * L; l < L; l++, c++) {
            const double inverse = 1. / std::sqrt(variances[c] + d.eps);
            dbias[c] = static_cast<float>(all.first[l]);
            dweight[c] = static_cast<float>(all.second[l] * inverse);
            scales[c] = static_cast<float>(weight[c] * inverse);
            offsets[c] = d.training ? static_cast<float>(all.first[l] / n) : 0.f;
            slopes[c] = d.training ? static_cast<float>(all.second[l] / n * inverse * inverse) : 0.f;
        }
    };
    in_stages(d, 2, piece, join);
}

// Maximum over 3x3 windows, stride 2, padding 1; `places` keeps which of the nine it was, the first on a tie.
template <long L>
void blocked_max_pool(const float* x, float* y, uint8_t* places, long planes, long height, long width) {
    const long out_h = (height + 1) / 2, out_w = (width + 1) / 2;
    #pragma omp parallel for collapse(2)
    for (long p = 0; p < planes; p++)
        for (long i = 0; i < out_h; i++)
            for (long j = 0; j < out_w; j++) {
                const long to = ((p * out_h + i) * out_w + j) * L;
                float most[L];
                uint8_t place[L];
                bool first = true;
                for (long r = std::max(2 * i - 1, 0L); r <= std::min(2 * i + 1, height - 1); r++)
                    for (long s = std::max(2 * j - 1, 0L); s <= std::min(2 * j + 1, width - 1); s++) {
                        const float* in = x + ((p * height + r) * width + s) * L;
                        const uint8_t here = static_cast<uint8_t>((r - 2 * i + 1) * 3 + s - 2 * j + 1);
                        for (long l = 0; l < L; l++) {
                            const bool better = first || in[l] > most[l];
                            most[l] = better ? in[l] : most[l];
                            place[l] = better ? here : place[l];
                        }
                        first = false;
                    }
                std::copy(most, most + L, y + to);
                std::copy(place, place + L, places + to);
            }
}

template <long L>
void blocked_max_pool_backward(const uint8_t* places, const float* dy, float* dx, long planes, long height, long width) {
    const long out_h = (height + 1) / 2, out_w = (width + 1) / 2;
    #pragma omp parallel for
    for (long p = 0; p < planes; p++) {
        std::fill(dx + p * height * width * L, dx + (p + 1) * height * width * L, 0.f);
        for (long i = 0; i < out_h; i++)
            for (long j = 0; j < out_w; j++)
                for (long l = 0; l < L; l++) {
                    const long from = ((p * out_h + i) * out_w + j) * L + l;
                    const long r = 2 * i - 1 + places[from] / 3, s = 2 * j - 1 + places[from] % 3;
                    dx[((p * height + r) * width + s) * L + l] += dy[from];
                }
    }
}

}  // namespace jea
