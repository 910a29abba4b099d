// Double normalisation of (S, N) or (N, S) matrices, and its gradient, on CUDA. See double_norm.py.
//
// Two launches: maximum and sum of each memory over a split of the positions; then the map, by blocks that join the
// splits' statistics for themselves and keep a tile of all memories in registers between the two steps. x is read twice
// and y written once; the second launch takes the maps from the last to the first, so that what the first has read last
// comes from the second-level cache. Likewise the gradient. No atomics: the same input gives the same bits.
#pragma once
#include <type_traits>
#include "attention/double_norm_memories_last.cuh"
#include "attention/double_norm_positions_last.cuh"

namespace jea {

// M: 8, 16, ... 512, at least the memories, or 512 for more. workspace: 2 B S (splits + 1) floats.
template <bool kPositionsLast, int M, class T>
void double_norm_forward(const DoubleNorm& d, float eps, const T* x, T* y, float* denominators, float* workspace) {
    Softmax* const joined = reinterpret_cast<Softmax*>(workspace);
    Softmax* const partial = joined + d.batch * d.memories;
    using Layout = std::conditional_t<kPositionsLast, PositionsLast<M>, MemoriesLast<M>>;
    Layout::statistics(d, x, partial);
    join_many(d, partial, joined);
    Layout::apply(d, eps, x, partial, joined, y, denominators);
}

// workspace: B S (splits + 1) + B N floats
template <bool kPositionsLast, int M, class T>
void double_norm_backward(const DoubleNorm& d, const T* y, const float* denominators, const T* g, T* dx,
                          float* workspace) {
    Sum* const joined = reinterpret_cast<Sum*>(workspace);
    Sum* const partial = joined + d.batch * d.memories;
    float* const dots = reinterpret_cast<float*>(partial + d.batch * d.memories * d.splits);
    using Layout = std::conditional_t<kPositionsLast, PositionsLast<M>, MemoriesLast<M>>;
    Layout::gradient_sums(d, y, g, dots, partial);
    join_many(d, partial, joined);
    Layout::gradient(d, y, g, denominators, dots, partial, joined, dx);
}

}  // namespace jea
