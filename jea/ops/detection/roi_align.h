// RoIAlign over several feature levels on the CPU. See roi_align.py. roi_align.cuh defines the same for CUDA.
//
// Bilinear sampling is a product of a map of rows and one of columns, and so is a mean over a grid of samples. The maps
// of a region are made once (Taps); channels then stand in the innermost loop, on features with channels last.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define JEA_EXACT __attribute__((noinline, optimize("no-fast-math", "fp-contract=off")))

namespace jea {

constexpr int kLevels = 8;

// One struct for both headers. Levels are (batch, channels, heights[l], widths[l]) in blocks of channels that lie side by
// side: 1 in nchw, all in nhwc, L in blocked. Cells of level l are 1 / scales[l] pixels wide.
struct RoiAlign {
    long batch, channels, regions, out_h, out_w, levels;
    long heights[kLevels], widths[kLevels];
    float scales[kLevels];
    long sampling;  // samples of a bin along each axis; 0: as many as it has cells
    bool aligned;
    long block;
    bool plain;  // the result is (regions, channels, out_h, out_w), else it lies as the levels do
};

// Along one axis: bin p is the sum of weights[k] times the cells places[k], k from first[p] to first[p + 1].
struct Taps {
    std::vector<int> first, places;
    std::vector<float> weights;
};

inline bool is_finite(float value) {  // std::isfinite is always true under -Ofast
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// Samples of the bins along one axis of `size` cells, in float32 as torchvision has it. `samples`: per bin.
JEA_EXACT inline void make_taps(Taps& taps, float low, float high, long bins, long size, long sampling, bool aligned,
                                long& samples) {
    taps.first.assign(1, 0);
    taps.places.clear();
    taps.weights.clear();
    float extent = high - low;
    if (!aligned && extent < 1.f) extent = 1.f;
    const float bin = extent / static_cast<float>(bins);
    const float wanted = std::ceil(extent / static_cast<float>(bins));
    samples = sampling > 0 ? sampling : wanted < 1.f ? 0 : wanted < 1e6f ? static_cast<long>(wanted) : 1000000;
    const bool sound = is_finite(low) && is_finite(high);  // what is not counts as outside
    for (long p = 0; p < bins; p++) {
        for (long i = 0; i < samples && sound; i++) {
            float at = low + static_cast<float>(p) * bin +
                       (static_cast<float>(i) + .5f) * bin / static_cast<float>(samples);
            if (at < -1.f || at > static_cast<float>(size)) continue;
            if (at < 0.f) at = 0.f;
            int cell = static_cast<int>(at);
            if (cell >= size - 1) {
                cell = static_cast<int>(size - 1);
                at = static_cast<float>(cell);
            }
            const float share = at - static_cast<float>(cell);
            const long begin = taps.first.back();
            for (int side = 0; side < (cell < size - 1 ? 2 : 1); side++) {
                const float weight = side ? share : 1.f - share;
                long k = static_cast<long>(taps.places.size()) - 1;
                while (k >= begin && taps.places[k] != cell + side) k--;  // samples rise: it is among the last ones
                if (k >= begin) {
                    taps.weights[k] += weight;
                } else {
                    taps.places.push_back(cell + side);
                    taps.weights.push_back(weight);
                }
            }
        }
        taps.first.push_back(static_cast<int>(taps.places.size()));
    }
}

// A region's level and picture, and its maps of rows and columns. The mean's divisor is in the rows.
struct Region {
    long level, picture;
    Taps rows, columns;
    bool sound;  // of a level and a picture that there are

    void read(const RoiAlign& d, const float* roi, int at_level) {
        level = at_level;
        picture = is_finite(roi[0]) ? static_cast<long>(roi[0]) : -1;
        sound = picture >= 0 && picture < d.batch && level >= 0 && level < d.levels;
        if (!sound) return;
        const float scale = d.scales[level], offset = d.aligned ? .5f : 0.f;
        long down, along;
        make_taps(rows, roi[2] * scale - offset, roi[4] * scale - offset, d.out_h, d.heights[level], d.sampling,
                  d.aligned, down);
        make_taps(columns, roi[1] * scale - offset, roi[3] * scale - offset, d.out_w, d.widths[level], d.sampling,
                  d.aligned, along);
        const float share = 1.f / static_cast<float>(std::max<long>(down * along, 1));
        for (float& weight : rows.weights) weight *= share;
    }
};

// to (columns, rows) from (rows, columns), in tiles that stay in the cache; `wide` and `high` lie between their rows.
inline void transpose_plane(const float* from, long wide, float* to, long high, long rows, long columns) {
    const long tile = 32;
    for (long r = 0; r < rows; r += tile)
        for (long c = 0; c < columns; c += tile)
            for (long i = r; i < std::min(rows, r + tile); i++)
                for (long j = c; j < std::min(columns, c + tile); j++) to[j * high + i] = from[i * wide + j];
}

// The levels' pictures as groups of channels that lie side by side: where they stand, or of nchw a copy of those where a
// region looks. T: const float, or float of gradients, which begin at 0.
template <class T>
struct Planes {
    const RoiAlign& d;
    T* const* levels;
    long width, groups;  // channels of a group
    bool copied;
    std::vector<std::unique_ptr<float[]>> copies;  // level x picture

    Planes(const RoiAlign& sizes, T* const* from, const float* rois, const int* at)
        : d(sizes), levels(from), copied(d.block == 1 && d.channels > 1), copies(d.levels * d.batch) {
        width = copied ? d.channels : d.block;
        groups = d.channels / width;
        for (long r = 0; r < d.regions && copied; r++) {
            const long picture = is_finite(rois[5 * r]) ? static_cast<long>(rois[5 * r]) : -1, level = at[r];
            if (picture < 0 || picture >= d.batch || level < 0 || level >= d.levels) continue;
            auto& copy = copies[level * d.batch + picture];
            if (!copy) copy.reset(new float[cells(level) * d.channels]);
        }
    }
    long cells(long level) const { return d.heights[level] * d.widths[level]; }
    // calls use(plane of all channels where the level stands, its copy or null, first cell, number of cells).
    template <class Use>
    void each(Use use) const {
        const long piece = 256;
        for (long k = 0; k < d.levels * d.batch; k++) {
            const long all = cells(k / d.batch);
            T* plane = levels[k / d.batch] + k % d.batch * all * d.channels;
            float* copy = copies[k].get();
            #pragma omp parallel for
            for (long first = 0; first < all; first += piece) use(plane, copy, all, first, std::min(piece, all - first));
        }
    }
    // The cells of a group, each of `width` channels.
    T* group(long level, long picture, long g) const {
        if (copied) return copies[level * d.batch + picture].get();
        return levels[level] + (picture * groups + g) * cells(level) * width;
    }
};

// to += weight * from over `count` channels, W of them where that is known.
template <long W>
inline void add_scaled(float* to, const float* from, float weight, long count) {
    const long n = W ? W : count;
    #pragma omp simd
    for (long c = 0; c < n; c++) to[c] += weight * from[c];
}

// Calls run<W>(...) with the width of a block where it is a usual one.
#define JEA_OF_WIDTH(width, run, ...)                      \
    do {                                                   \
        if ((width) == 16) run<16>(__VA_ARGS__);           \
        else if ((width) == 8) run<8>(__VA_ARGS__);        \
        else if ((width) == 64) run<64>(__VA_ARGS__);      \
        else run<0>(__VA_ARGS__);                          \
    } while (0)

// bins (out_h, out_w, width) of a region from a group's cells; row (out_w, width) is scratch.
template <long W>
inline void pool_group(const RoiAlign& d, const Region& region, const float* cells, long width, float* row, float* bins) {
    const Taps &rows = region.rows, &columns = region.columns;
    std::fill(bins, bins + d.out_h * d.out_w * width, 0.f);
    int done = -1;  // the row of cells that `row` holds
    for (long p = 0; p < d.out_h; p++)
        for (int k = rows.first[p]; k < rows.first[p + 1]; k++) {
            if (rows.places[k] != done) {
                done = rows.places[k];
                const float* line = cells + done * d.widths[region.level] * width;
                for (long q = 0; q < d.out_w; q++) {
                    float* to = row + q * width;
                    std::fill(to, to + width, 0.f);
                    for (int j = columns.first[q]; j < columns.first[q + 1]; j++)
                        add_scaled<W>(to, line + columns.places[j] * width, columns.weights[j], width);
                }
            }
            add_scaled<0>(bins + p * d.out_w * width, row, rows.weights[k], d.out_w * width);
        }
}

// y from features, a pointer per level. Memory: a copy of the levels in nchw, whatever the number of regions.
inline void roi_align(const RoiAlign& d, const float* const* features, const float* rois, const int* levels, float* y,
                      float*) {
    const Planes<const float> planes(d, features, rois, levels);
    if (planes.copied)
        planes.each([&](const float* plane, float* copy, long all, long first, long count) {
            if (copy) transpose_plane(plane + first, all, copy + first * d.channels, d.channels, d.channels, count);
        });
    const long bins = d.out_h * d.out_w, width = planes.width;
    #pragma omp parallel
    {
        Region region;
        std::vector<float> row(d.out_w * width), found(d.plain ? bins * width : 0);
        #pragma omp for schedule(dynamic, 4)
        for (long r = 0; r < d.regions; r++) {
            region.read(d, rois + 5 * r, levels[r]);
            for (long g = 0; g < planes.groups; g++) {
                float *own = y + (r * planes.groups + g) * width * bins, *to = d.plain ? found.data() : own;
                if (!region.sound) std::fill(to, to + bins * width, 0.f);
                else JEA_OF_WIDTH(width, pool_group, d, region, planes.group(region.level, region.picture, g), width,
                                  row.data(), to);
                if (d.plain) transpose_plane(to, width, own, bins, bins, width);
            }
        }
    }
}

// Adds a region's gradient to `count` channels of a group's cells; of those in `value`, `wide` lie side by side.
template <long W>
inline void spread_group(const RoiAlign& d, const Region& region, const float* value, long wide, float* cells, long width,
                         long count) {
    const Taps &rows = region.rows, &columns = region.columns;
    for (long p = 0; p < d.out_h; p++)
        for (int k = rows.first[p]; k < rows.first[p + 1]; k++) {
            float* line = cells + rows.places[k] * d.widths[region.level] * width;
            for (long q = 0; q < d.out_w; q++)
                for (int j = columns.first[q]; j < columns.first[q + 1]; j++)
                    add_scaled<W>(line + columns.places[j] * width, value + (p * d.out_w + q) * wide,
                                  rows.weights[k] * columns.weights[j], count);
        }
}

// dfeatures, a pointer per level, from dy of y's shape. A thread has some of the channels of all regions, so that sums
// run in the order of the regions. Memory as forward: the maps of some regions at a time.
inline void roi_align_backward(const RoiAlign& d, const float* dy, const float* rois, const int* levels,
                               float* const* dfeatures, float*) {
    const Planes<float> planes(d, dfeatures, rois, levels);
    planes.each([&](float* plane, float* copy, long, long first, long count) {
        float* begin = (copy ? copy : plane) + first * d.channels;
        std::fill(begin, begin + count * d.channels, 0.f);
    });
    const long bins = d.out_h * d.out_w, width = planes.width, share = std::min<long>(64, width), some = 256;
    const long shares = (width + share - 1) / share;  // of a group
    std::vector<Region> regions(std::min(some, d.regions));
    for (long start = 0; start < d.regions; start += some) {
        const long end = std::min(d.regions, start + some);
        #pragma omp parallel for schedule(dynamic, 16)
        for (long r = start; r < end; r++) regions[r - start].read(d, rois + 5 * r, levels[r]);
        #pragma omp parallel for schedule(dynamic)
        for (long s = 0; s < shares * planes.groups; s++) {
            const long g = s / shares, begin = s % shares * share, count = std::min(share, width - begin);
            std::vector<float> from(d.plain ? bins * count : 0);
            for (long r = start; r < end; r++) {
                const Region& region = regions[r - start];
                if (!region.sound) continue;
                const float* value = dy + (r * planes.groups + g) * width * bins + (d.plain ? begin * bins : begin);
                if (d.plain) transpose_plane(value, bins, from.data(), count, count, bins);
                JEA_OF_WIDTH(count, spread_group, d, region, d.plain ? from.data() : value, d.plain ? count : width,
                             planes.group(region.level, region.picture, g) + begin, width, count);
            }
        }
    }
    if (planes.copied)
        planes.each([&](float* plane, float* copy, long all, long first, long count) {
            if (copy) transpose_plane(copy + first * d.channels, d.channels, plane + first, all, count, d.channels);
        });
}

}  // namespace jea
