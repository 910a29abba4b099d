// Suppression of overlapping boxes and matching of boxes with ground truth on the CPU. See nms.py and match_boxes.py.
// boxes.cuh defines the same functions for CUDA. A float* without a name is scratch memory of the CUDA form.
//
// Which box survives hangs on the last bit of a quotient. Jittor compiles with -Ofast, which reorders sums and takes
// approximate quotients: JEA_EXACT functions are compiled without that.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#define JEA_EXACT __attribute__((noinline, optimize("no-fast-math", "fp-contract=off")))

namespace jea {

// A float as an unsigned integer of the same order, with NaN above all.
inline uint32_t order_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return UINT32_MAX;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Box { float x1, y1, x2, y2, area; };

JEA_EXACT inline Box box_at(const float* p) {
    return {p[0], p[1], p[2], p[3], (p[2] - p[0]) * (p[3] - p[1])};
}

// n boxes as five arrays.
struct Boxes {
    std::vector<float> x1, y1, x2, y2, area;

    void add(const Box& b) {
        x1.push_back(b.x1);
        y1.push_back(b.y1);
        x2.push_back(b.x2);
        y2.push_back(b.y2);
        area.push_back(b.area);
    }
};

// Whether the float32 quotient inter / union of a box with any of `kept` is above the threshold. Without a division:
// float32(q) > t exactly where q is beyond the middle of t and its successor, and that product is exact in double.
JEA_EXACT inline bool overlaps_any(const Box& b, const Boxes& kept, double middle, bool middle_too) {
    const long n = static_cast<long>(kept.area.size()), block = 64;
    const float *x1 = kept.x1.data(), *y1 = kept.y1.data(), *x2 = kept.x2.data(), *y2 = kept.y2.data();
    const float* area = kept.area.data();
    for (long start = 0; start < n; start += block) {
        const long end = std::min(n, start + block);
        int hit = 0;
        for (long i = start; i < end; i++) {
            const float left = x1[i] > b.x1 ? x1[i] : b.x1, right = x2[i] < b.x2 ? x2[i] : b.x2;
            const float top = y1[i] > b.y1 ? y1[i] : b.y1, bottom = y2[i] < b.y2 ? y2[i] : b.y2;
            const float w = right - left > 0.f ? right - left : 0.f, h = bottom - top > 0.f ? bottom - top : 0.f;
            const float inter = w * h, sum = area[i] + b.area, whole = sum - inter;
            const double most = middle * static_cast<double>(whole);
            hit |= (whole > 0.f) & ((inter > most) | (middle_too & (inter == most)));
        }
        if (hit) return true;
    }
    return false;
}

// kept (n,): the indices of the boxes that stay, by falling score, of equals the first index first; then -1. A box is
// dropped where it overlaps one of its group that stays.
inline void nms(const float* boxes, const float* scores, const int* groups, int* kept, float*, long n, float threshold) {
    std::vector<uint64_t> keys(n);
    for (long i = 0; i < n; i++) keys[i] = static_cast<uint64_t>(~order_of(scores[i])) << 32 | static_cast<uint64_t>(i);
    std::sort(keys.begin(), keys.end());
    std::map<int, std::vector<int>> places;  // of each group, in that order
    for (long i = 0; i < n; i++) places[groups[keys[i] & UINT32_MAX]].push_back(static_cast<int>(i));
    std::vector<const std::vector<int>*> lists;
    for (const auto& entry : places) lists.push_back(&entry.second);
    uint32_t bits;
    std::memcpy(&bits, &threshold, sizeof bits);
    const uint32_t next_bits = bits + 1;
    float next;
    std::memcpy(&next, &next_bits, sizeof next);
    const double middle = (static_cast<double>(threshold) + static_cast<double>(next)) / 2;
    const bool middle_too = bits & 1;  // rounds to even
    std::vector<char> stays(n, 0);
    #pragma omp parallel for schedule(dynamic)
    for (long g = 0; g < static_cast<long>(lists.size()); g++) {
        Boxes found;
        for (int place : *lists[g]) {
            const Box box = box_at(boxes + 4 * (keys[place] & UINT32_MAX));
            if (overlaps_any(box, found, middle, middle_too)) continue;
            found.add(box);
            stays[place] = 1;
        }
    }
    long count = 0;
    for (long i = 0; i < n; i++)
        if (stays[i]) kept[count++] = static_cast<int>(keys[i] & UINT32_MAX);
    std::fill(kept + count, kept + n, -1);
}

// How boxes and ground truth are matched; the numbers of match_boxes.py.
struct Matching {
    float high, low;    // a box is of a truth from `high` on, background below `low`, between them of neither
    int rule;           // 0: no more; 1: torchvision's, 2: mmdetection's way to give every truth its best boxes
    float least;        // rule 2: truths whose best IoU is below it get none
};

// The IoU of truths (count, 4) with a chunk of boxes: row t of `iou` holds those of truth t.
JEA_EXACT inline void iou_rows(const float* boxes, const float* truths, float* iou, long chunk, long count) {
    for (long t = 0; t < count; t++) {
        const Box a = box_at(truths + 4 * t);
        for (long i = 0; i < chunk; i++) {
            const float *p = boxes + 4 * i;
            const float left = p[0] > a.x1 ? p[0] : a.x1, right = p[2] < a.x2 ? p[2] : a.x2;
            const float top = p[1] > a.y1 ? p[1] : a.y1, bottom = p[3] < a.y2 ? p[3] : a.y2;
            const float w = right - left > 0.f ? right - left : 0.f, h = bottom - top > 0.f ? bottom - top : 0.f;
            const float inter = w * h, area = (p[2] - p[0]) * (p[3] - p[1]), whole = a.area + area - inter;
            iou[t * chunk + i] = whole > 0.f ? inter / whole : 0.f;
        }
    }
}

constexpr long kChunk = 512;

// calls use(first, chunk, rows) for chunks of the boxes, in parallel; rows (count, chunk) are the IoUs. From `quality`
// (count, n), where it is not null, else from the boxes.
template <class Use>
inline void for_chunks(const float* boxes, const float* truths, const float* quality, long n, long count, Use use) {
    #pragma omp parallel
    {
        std::vector<float> rows(count * kChunk);
        #pragma omp for schedule(static)
        for (long first = 0; first < n; first += kChunk) {
            const long chunk = std::min(kChunk, n - first);
            if (quality)
                for (long t = 0; t < count; t++)
                    std::memcpy(rows.data() + t * chunk, quality + t * n + first, sizeof(float) * chunk);
            else
                iou_rows(boxes + 4 * first, truths, rows.data(), chunk, count);
            use(first, chunk, rows.data());
        }
    }
}

// matches (n,): the truth of each box, -1 background, -2 neither. best (n,): its largest IoU. Memory: kChunk x count.
inline void match_boxes(const float* boxes, const float* truths, const float* quality, int* matches, float* best, float*,
                        long n, long count, const Matching& m) {
    std::vector<float> most(count, 0.f);  // of each truth, over all boxes
    for_chunks(boxes, truths, quality, n, count, [&](long first, long chunk, const float* rows) {
        int* match = matches + first;
        float* high = best + first;
        std::fill(match, match + chunk, 0);
        std::copy(rows, rows + chunk, high);
        std::vector<float> own(count, 0.f);
        for (long t = 0; t < count; t++) {
            const float* row = rows + t * chunk;
            float top = 0.f;
            for (long i = 0; i < chunk; i++) {
                match[i] = row[i] > high[i] ? static_cast<int>(t) : match[i];
                high[i] = row[i] > high[i] ? row[i] : high[i];
                top = row[i] > top ? row[i] : top;
            }
            own[t] = top;
        }
        for (long i = 0; i < chunk && m.rule != 1; i++)
            match[i] = high[i] >= m.high ? match[i] : high[i] < m.low ? -1 : -2;
        #pragma omp critical
        for (long t = 0; t < count; t++) most[t] = std::max(most[t], own[t]);
    });
    if (m.rule == 0) return;
    for_chunks(boxes, truths, quality, n, count, [&](long first, long chunk, const float* rows) {
        int* match = matches + first;
        std::vector<char> restored(chunk, 0);
        for (long t = 0; t < count; t++) {
            const float* row = rows + t * chunk;
            if (m.rule == 2 && most[t] < m.least) continue;
            for (long i = 0; i < chunk; i++) {
                const bool equal = row[i] == most[t];
                if (m.rule == 2) match[i] = equal ? static_cast<int>(t) : match[i];
                restored[i] |= equal;
            }
        }
        for (long i = 0; i < chunk && m.rule == 1; i++) {
            const float high = best[first + i];
            match[i] = restored[i] || high >= m.high ? match[i] : high < m.low ? -1 : -2;
        }
    });
}

}  // namespace jea
