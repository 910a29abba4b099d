// Pasting of small masks into pictures on the CPU. See paste_masks.py; masks.cuh defines the same for CUDA.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define JEA_EXACT __attribute__((noinline, optimize("no-fast-math", "fp-contract=off")))

namespace jea {

struct Paste {
    long count, mask_h, mask_w, height, width;
    bool grid;        // mmdetection's rule, else torchvision's
    float threshold;  // below 0: values, not bits
};

inline long whole_number(float value) {  // towards zero, within what a long holds
    return static_cast<long>(std::min(std::max(value, -1e9f), 1e9f));
}

// Where one axis of a picture looks into a mask: cells a and b with their weights, for pixels first to end - 1.
struct PasteAxis {
    long first, end, origin, pixels, cells;
    float low, high;
    bool grid;

    // low, high: the box along this axis; size: of the picture.
    JEA_EXACT PasteAxis(float from, float to, long cells, long size, bool grid) : cells(cells), low(from), high(to), grid(grid) {
        first = 0;
        end = size;
        origin = 0;
        pixels = 1;
        if (grid) {
            first = std::max<long>(whole_number(std::floor(from)) - 1, 0);
            end = std::min<long>(whole_number(std::ceil(to)) + 1, size);
            return;
        }
        const float grown = static_cast<float>(static_cast<double>(cells + 2) / static_cast<double>(cells));
        const float half = (to - from) * .5f * grown, centre = (to + from) * .5f;
        const long begin = whole_number(centre - half), stop = whole_number(centre + half);
        origin = begin;
        pixels = std::max<long>(stop - begin + 1, 1);
        first = std::max<long>(begin, 0);
        end = std::min<long>(stop + 1, size);
    }

    // The cells and weights of a pixel; cells outside of the mask have the weight 0.
    JEA_EXACT void at(long pixel, long& a, long& b, float& wa, float& wb) const {
        float place;
        if (grid) {
            float u = (static_cast<float>(pixel) + .5f - low) / (high - low) * 2.f - 1.f;
            uint32_t bits;  // std::isinf is always false under -Ofast
            std::memcpy(&bits, &u, sizeof bits);
            if ((bits & 0x7fffffffu) == 0x7f800000u) u = 0.f;
            place = ((u + 1.f) * static_cast<float>(cells) - 1.f) * .5f;
            const float floor = std::floor(place);
            const bool sound = floor >= -1.f && floor < static_cast<float>(cells);  // not of NaN
            a = sound ? static_cast<long>(floor) : -2;
            wb = sound ? place - floor : 0.f;
        } else {
            const long padded = cells + 2;  // a frame of zeros
            place = static_cast<float>(padded) / static_cast<float>(pixels) *
                    (static_cast<float>(pixel - origin) + .5f) - .5f;
            if (place < 0.f) place = 0.f;
            a = std::min(static_cast<long>(place), padded - 1);
            wb = a < padded - 1 ? place - static_cast<float>(a) : 0.f;
            a -= 1;
        }
        b = a + 1;
        wa = 1.f - wb;
        if (a < 0 || a >= cells) {
            a = 0;
            wa = 0.f;
        }
        if (b < 0 || b >= cells) {
            b = 0;
            wb = 0.f;
        }
    }
};

// The cells and weights of all of an axis's pixels from its first on.
struct PasteTaps {
    std::vector<int> a, b;
    std::vector<float> wa, wb;

    explicit PasteTaps(const PasteAxis& axis) {
        const long count = std::max<long>(axis.end - axis.first, 0);
        for (auto* cells : {&a, &b}) cells->resize(count);
        for (auto* weights : {&wa, &wb}) weights->resize(count);
        for (long i = 0; i < count; i++) {
            long left, right;
            axis.at(axis.first + i, left, right, wa[i], wb[i]);
            a[i] = static_cast<int>(left);
            b[i] = static_cast<int>(right);
        }
    }
};

// out (count, height, width): bytes 0 and 1, or with a threshold below 0 float32 values; 0 outside of the boxes.
template <class T>
inline void paste_masks(const Paste& d, const float* masks, const float* boxes, T* out) {
    #pragma omp parallel for schedule(dynamic)
    for (long n = 0; n < d.count; n++) {
        T* picture = out + n * d.height * d.width;
        std::fill(picture, picture + d.height * d.width, T(0));
        const float *box = boxes + 4 * n, *mask = masks + n * d.mask_h * d.mask_w, threshold = d.threshold;
        const PasteAxis across(box[0], box[2], d.mask_w, d.width, d.grid), down(box[1], box[3], d.mask_h, d.height, d.grid);
        const PasteTaps columns(across), rows(down);
        const int *left = columns.a.data(), *right = columns.b.data();
        const float *wl = columns.wa.data(), *wr = columns.wb.data();
        const long wide = static_cast<long>(columns.a.size()), high = static_cast<long>(rows.a.size());
        for (long y = 0; y < high; y++) {
            const float *upper = mask + rows.a[y] * d.mask_w, *lower = mask + rows.b[y] * d.mask_w;
            const float wt = rows.wa[y], wb = rows.wb[y];
            T* to = picture + (down.first + y) * d.width + across.first;
            const auto value = [&](long x) {
                return wt * (wl[x] * upper[left[x]] + wr[x] * upper[right[x]]) +
                       wb * (wl[x] * lower[left[x]] + wr[x] * lower[right[x]]);
            };
            if (threshold < 0.f)
                for (long x = 0; x < wide; x++) to[x] = static_cast<T>(value(x));
            else if (d.grid)
                for (long x = 0; x < wide; x++) to[x] = static_cast<T>(value(x) >= threshold);
            else
                for (long x = 0; x < wide; x++) to[x] = static_cast<T>(value(x) > threshold);
        }
    }
}

}  // namespace jea
