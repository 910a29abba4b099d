// The sizes of overlapping square patches of pictures. For the CPU and CUDA, see soft_split.py.
#pragma once
#include "common/both.h"

namespace jea {

// Element (b, c, y, x) of the picture stands at ((b * height + y) * width + x) * channels + c if channels are last,
// else at ((b * channels + c) * height + y) * width + x.
struct SoftSplit {
    long batch, channels, height, width, kernel, stride, padding;
    bool channels_last;

    JEA_BOTH long rows() const { return (height + 2 * padding - kernel) / stride + 1; }
    JEA_BOTH long columns() const { return (width + 2 * padding - kernel) / stride + 1; }
    JEA_BOTH long token() const { return channels * kernel * kernel; }
    JEA_BOTH long channel_step() const { return channels_last ? 1 : height * width; }
    JEA_BOTH long pixel_step() const { return channels_last ? channels : 1; }
    JEA_BOTH long at(long b, long c, long y, long x) const {
        return b * channels * height * width + c * channel_step() + (y * width + x) * pixel_step();
    }
};

}  // namespace jea
