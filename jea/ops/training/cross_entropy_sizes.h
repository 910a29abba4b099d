// The sizes of a cross entropy of logits (batch, classes, positions). For the CPU and CUDA, see cross_entropy.py.
#pragma once

namespace jea {

struct CrossEntropy {
    long batch, classes, positions;
    long ignored;
    float smoothing;

    static constexpr long kTile = 256;  // of positions, on the CPU
    long tiles() const { return (positions + kTile - 1) / kTile; }
};

}  // namespace jea
