// The sizes of a LayerNorm over rows of `width` values. For the CPU and CUDA, see layer_norm.py.
#pragma once

namespace jea {

struct LayerNorm {
    long rows, width;
    double eps;
    long splits = 1;  // of the rows, in the gradient on CUDA
};

}  // namespace jea
