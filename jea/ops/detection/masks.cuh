// Pasting of small masks into pictures on CUDA. See paste_masks.py; masks.h defines the same for the CPU.
#pragma once
#include <cuda_runtime.h>
#include "common/reduce.cuh"

namespace jea {

struct Paste {
    long count, mask_h, mask_w, height, width;
    bool grid;
    float threshold;
};

__device__ inline long whole_number(float value) { return static_cast<long>(fminf(fmaxf(value, -1e9f), 1e9f)); }

// Where a pixel of one axis looks: two cells with their weights; false outside of the box.
__device__ inline bool paste_at(long pixel, float low, float high, long cells, long size, bool grid, long& a, long& b,
                                float& wa, float& wb) {
    if (grid) {
        if (pixel < whole_number(floorf(low)) - 1 || pixel >= whole_number(ceilf(high)) + 1) return false;
        float u = __fadd_rn(__fmul_rn(__fdiv_rn(__fadd_rn(static_cast<float>(pixel) + .5f, -low), __fadd_rn(high, -low)),
                                      2.f), -1.f);
        const unsigned bits = static_cast<unsigned>(__float_as_int(u)) & 0x7fffffffu;
        if (bits > 0x7f800000u) return false;
        if (bits == 0x7f800000u) u = 0.f;
        const float place = __fmul_rn(__fadd_rn(__fmul_rn(__fadd_rn(u, 1.f), static_cast<float>(cells)), -1.f), .5f);
        const float floor = floorf(place);
        if (!(floor >= -1.f && floor < static_cast<float>(cells))) return false;
        a = static_cast<long>(floor);
        wb = __fadd_rn(place, -floor);
    } else {
        const float grown = static_cast<float>(__ddiv_rn(static_cast<double>(cells + 2), static_cast<double>(cells)));
        const float half = __fmul_rn(__fmul_rn(__fadd_rn(high, -low), .5f), grown);
        const float centre = __fmul_rn(__fadd_rn(high, low), .5f);
        const long begin = whole_number(__fadd_rn(centre, -half)), stop = whole_number(__fadd_rn(centre, half));
        if (pixel < begin || pixel > stop) return false;
        const long pixels = stop - begin + 1 > 1 ? stop - begin + 1 : 1, padded = cells + 2;
        const float step = __fdiv_rn(static_cast<float>(padded), static_cast<float>(pixels));
        const float place = fmaxf(__fadd_rn(__fmul_rn(step, static_cast<float>(pixel - begin) + .5f), -.5f), 0.f);
        a = static_cast<long>(place) < padded - 1 ? static_cast<long>(place) : padded - 1;
        wb = a < padded - 1 ? __fadd_rn(place, -static_cast<float>(a)) : 0.f;
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
    return pixel < size;
}

// A thread per pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
paste_pixels(Paste d, const float* __restrict__ masks, const float* __restrict__ boxes, T* __restrict__ out) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= d.count * d.height * d.width) return;
    const long n = i / (d.height * d.width), y = i / d.width % d.height, x = i % d.width;
    const float *box = boxes + 4 * n, *mask = masks + n * d.mask_h * d.mask_w;
    long top, bottom, left, right;
    float wt, wb, wl, wr, value = 0.f;
    bool set = false;
    if (paste_at(y, box[1], box[3], d.mask_h, d.height, d.grid, top, bottom, wt, wb) &&
        paste_at(x, box[0], box[2], d.mask_w, d.width, d.grid, left, right, wl, wr)) {
        const float *upper = mask + top * d.mask_w, *lower = mask + bottom * d.mask_w;
        const float above = __fadd_rn(__fmul_rn(wl, upper[left]), __fmul_rn(wr, upper[right]));
        const float below = __fadd_rn(__fmul_rn(wl, lower[left]), __fmul_rn(wr, lower[right]));
        value = __fadd_rn(__fmul_rn(wt, above), __fmul_rn(wb, below));
        set = d.grid ? value >= d.threshold : value > d.threshold;
    }
    out[i] = d.threshold < 0.f ? static_cast<T>(value) : static_cast<T>(set);
}

template <class T>
inline void paste_masks(const Paste& d, const float* masks, const float* boxes, T* out) {
    paste_pixels<T><<<blocks_of(d.count * d.height * d.width, kThreads), kThreads>>>(d, masks, boxes, out);
}

}  // namespace jea
