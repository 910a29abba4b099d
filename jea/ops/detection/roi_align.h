// RoIAlign over several feature levels on the CPU. See roi_align.py. roi_align.cuh defines the same for CUDA.
//
// Bilinear sampling is a product of a map of rows and one of columns, and so is a mean over a grid of samples. The maps
// of a region are made once (Taps); channels then stand in the innermost loop, on features with channels last.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define JEA_EXACT __attribute__((noinline, optimize("no-fast-math", "fp-contract=off")))

namespace jea {

constexpr int kLevels = 8;

// One struct for both headers. Levels are (batch, channels, heights[l], widths[l]); cells of level l are
// 1 / scales[l] pixels wide.
struct RoiAlign {
    long batch, channels, regions, out_h, out_w, levels;
    long heights[kLevels], widths[kLevels];
    float scales[kLevels];
    long sampling;  // samples of a bin along each axis; 0: as many as it has cells
    bool aligned;
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

    void read(const RoiAlign& d, const float* roi, int at_level) {
        level = at_level;
        picture = is_finite(roi[0]) ? static_cast<long>(roi[0]) : -1;
        const float scale = d.scales[level], offset = d.aligned ? .5f : 0.f;
        long down, along;
        make_taps(rows, roi[2] * scale - offset, roi[4] * scale - offset, d.out_h, d.heights[level], d.sampling,
                  d.aligned, down);
        make_taps(columns, roi[1] * scale - offset, roi[3] * scale - offset, d.out_w, d.widths[level], d.sampling,
                  d.aligned, along);
        const float share = 1.f / static_cast<float>(std::max<long>(down * along, 1));
        for (float& weight : rows.weights) weight *= share;
        sound = picture >= 0 && picture < d.batch && level >= 0 && level < d.levels;
    }
    bool sound;
};

// (planes, cells) <-> (cells, planes), in tiles that stay in the cache.
inline void transpose_plane(const float* from, float* to, long rows, long columns) {
    const long tile = 32;
    for (long r = 0; r < rows; r += tile)
        for (long c = 0; c < columns; c += tile)
            for (long i = r; i < std::min(rows, r + tile); i++)
                for (long j = c; j < std::min(columns, c + tile); j++) to[j * rows + i] = from[i * columns + j];
}

// Pictures with channels last, of all levels; only where a region looks.
struct ChannelsLast {
    std::vector<std::vector<float>> planes;  // level x picture

    ChannelsLast(const RoiAlign& d, const int* levels, const float* rois) : planes(d.levels * d.batch) {
        for (long r = 0; r < d.regions; r++) {
            const long picture = static_cast<long>(rois[5 * r]), level = levels[r];
            if (picture < 0 || picture >= d.batch || level < 0 || level >= d.levels) continue;
            planes[level * d.batch + picture].resize(1);  // marks it
        }
        for (long k = 0; k < static_cast<long>(planes.size()); k++)
            if (!planes[k].empty()) planes[k].resize(size(d, k));
    }
    static long cells(const RoiAlign& d, long k) { return d.heights[k / d.batch] * d.widths[k / d.batch]; }
    static long size(const RoiAlign& d, long k) { return cells(d, k) * d.channels; }
};

// y (regions, channels, out_h, out_w) from features, a pointer per level.
inline void roi_align(const RoiAlign& d, const float* const* features, const float* rois, const int* levels, float* y,
                      float*) {
    ChannelsLast last(d, levels, rois);
    #pragma omp parallel for schedule(dynamic)
    for (long k = 0; k < static_cast<long>(last.planes.size()); k++)
        if (!last.planes[k].empty())
            transpose_plane(features[k / d.batch] + k % d.batch * ChannelsLast::size(d, k), last.planes[k].data(),
                            d.channels, ChannelsLast::cells(d, k));
    #pragma omp parallel
    {
        Region region;
        std::vector<float> row(d.out_w * d.channels), bins(d.out_h * d.out_w * d.channels);
        #pragma omp for schedule(dynamic, 4)
        for (long r = 0; r < d.regions; r++) {
            region.read(d, rois + 5 * r, levels[r]);
            std::fill(bins.begin(), bins.end(), 0.f);
            const float* plane = region.sound ? last.planes[region.level * d.batch + region.picture].data() : nullptr;
            const Taps &rows = region.rows, &columns = region.columns;
            int done = -1;  // the row of cells that `row` holds
            for (long p = 0; p < d.out_h && plane; p++)
                for (int k = rows.first[p]; k < rows.first[p + 1]; k++) {
                    if (rows.places[k] != done) {
                        done = rows.places[k];
                        const float* line = plane + done * d.widths[region.level] * d.channels;
                        for (long q = 0; q < d.out_w; q++) {
                            float* to = row.data() + q * d.channels;
                            std::fill(to, to + d.channels, 0.f);
                            for (int j = columns.first[q]; j < columns.first[q + 1]; j++) {
                                const float weight = columns.weights[j], *from = line + columns.places[j] * d.channels;
                                #pragma omp simd
                                for (long c = 0; c < d.channels; c++) to[c] += weight * from[c];
                            }
                        }
                    }
                    const float weight = rows.weights[k];
                    float* to = bins.data() + p * d.out_w * d.channels;
                    #pragma omp simd
                    for (long i = 0; i < d.out_w * d.channels; i++) to[i] += weight * row[i];
                }
            transpose_plane(bins.data(), y + r * d.channels * d.out_h * d.out_w, d.out_h * d.out_w, d.channels);
        }
    }
}

// dfeatures, a pointer per level, from dy of y's shape. A thread has some of the channels of all regions, so that sums
// run in the order of the regions.
inline void roi_align_backward(const RoiAlign& d, const float* dy, const float* rois, const int* levels,
                               float* const* dfeatures, float*) {
    ChannelsLast last(d, levels, rois);
    std::vector<Region> regions(d.regions);
    #pragma omp parallel for schedule(dynamic, 16)
    for (long r = 0; r < d.regions; r++) regions[r].read(d, rois + 5 * r, levels[r]);
    const long bins = d.out_h * d.out_w, share = 64, shares = (d.channels + share - 1) / share;
    #pragma omp parallel for schedule(dynamic)
    for (long s = 0; s < shares; s++) {
        const long begin = s * share, count = std::min(share, d.channels - begin);
        std::vector<float> from(bins * count), row(d.out_w * count);
        for (long r = 0; r < d.regions; r++) {
            const Region& region = regions[r];
            if (!region.sound) continue;
            transpose_plane(dy + (r * d.channels + begin) * bins, from.data(), count, bins);
            float* plane = last.planes[region.level * d.batch + region.picture].data();
            const Taps &rows = region.rows, &columns = region.columns;
            for (long p = 0; p < d.out_h; p++)
                for (int k = rows.first[p]; k < rows.first[p + 1]; k++) {
                    float* line = plane + rows.places[k] * d.widths[region.level] * d.channels + begin;
                    const float down = rows.weights[k];
                    for (long q = 0; q < d.out_w; q++)
                        for (int j = columns.first[q]; j < columns.first[q + 1]; j++) {
                            const float weight = down * columns.weights[j];
                            float* to = line + columns.places[j] * d.channels;
                            const float* value = from.data() + (p * d.out_w + q) * count;
                            #pragma omp simd
                            for (long c = 0; c < count; c++) to[c] += weight * value[c];
                        }
                }
        }
    }
    #pragma omp parallel for schedule(dynamic)
    for (long k = 0; k < static_cast<long>(last.planes.size()); k++) {
        float* to = dfeatures[k / d.batch] + k % d.batch * ChannelsLast::size(d, k);
        if (last.planes[k].empty()) std::fill(to, to + ChannelsLast::size(d, k), 0.f);
        else transpose_plane(last.planes[k].data(), to, ChannelsLast::cells(d, k), d.channels);
    }
}

}  // namespace jea
