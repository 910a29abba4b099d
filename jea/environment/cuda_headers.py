"""The small files of the CUDA home (cuda_home.py) that bridge CUDA 13 and cuDNN 9 to what Jittor was written for."""
# Jittor passes C++14, and for cards newer than it knows the code of compute capability 9.0 alone: with the portable
# form (PTX) beside the first code the driver translates for them.
NVCC = """#!/bin/sh
portable=
for argument do
  shift
  case "$argument" in
    -std=c++14) argument=-std=c++17 ;;
    -arch=compute_*) portable=,${argument#-arch=} ;;
    -code=sm_*) argument=$argument$portable portable= ;;
  esac
  set -- "$@" "$argument"
done
exec "NVCC" "$@"
"""

RUNTIME_H = """#pragma once
#include "cuda_runtime_real.h"
// Members that left cudaDeviceProp in CUDA 13; Jittor only asks whether a device is prohibited, and for a rough speed.
#define computeMode integrated
#define clockRate integrated
"""

NPP_H = """#pragma once
#define NPP_MIN_32U (0)
#define NPP_MAX_32U (4294967295U)
#define NPP_MIN_32S (-2147483647 - 1)
#define NPP_MAX_32S (2147483647)
#define NPP_MIN_64U (0)
#define NPP_MAX_64U (18446744073709551615ULL)
#define NPP_MIN_64S (-9223372036854775807LL - 1)
#define NPP_MAX_64S (9223372036854775807LL)
"""

CUDNN_H = """#pragma once
#include "cudnn_real.h"
#if CUDNN_MAJOR >= 9 && defined(__cplusplus)
#define JEA_GONE(name) template <class... T> inline cudnnStatus_t name(T&&...) { return CUDNN_STATUS_NOT_SUPPORTED; }
JEA_GONE(cudnnSetRNNDescriptor_v6)
JEA_GONE(cudnnGetRNNParamsSize)
JEA_GONE(cudnnGetRNNWorkspaceSize)
JEA_GONE(cudnnGetRNNTrainingReserveSize)
JEA_GONE(cudnnGetRNNLinLayerMatrixParams)
JEA_GONE(cudnnGetRNNLinLayerBiasParams)
JEA_GONE(cudnnRNNForwardTraining)
JEA_GONE(cudnnRNNForwardInference)
JEA_GONE(cudnnRNNBackwardData)
JEA_GONE(cudnnRNNBackwardWeights)
#undef JEA_GONE
#endif
"""

CUB_CUH = """#pragma once
#include "cub_real.cuh"
#if defined(__CUDACC__) && defined(CUB_MAJOR_VERSION) && CUB_MAJOR_VERSION >= 3
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
CUB_NAMESPACE_BEGIN
struct Max {
    template <class T, class U>
    __host__ __device__ auto operator()(const T& a, const U& b) const -> decltype(a + b) { return a < b ? b : a; }
};
struct Min {
    template <class T, class U>
    __host__ __device__ auto operator()(const T& a, const U& b) const -> decltype(a + b) { return b < a ? b : a; }
};
struct Sum {
    template <class T, class U>
    __host__ __device__ auto operator()(const T& a, const U& b) const -> decltype(a + b) { return a + b; }
};
__device__ __forceinline__ unsigned LaneId() {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
template <class T, class Offset = ptrdiff_t>
using CountingInputIterator = ::thrust::counting_iterator<T>;
template <class Value, class Operation, class Iterator, class Offset = ptrdiff_t>
struct TransformInputIterator : ::thrust::transform_iterator<Operation, Iterator, Value, Value> {
    __host__ __device__ TransformInputIterator(Iterator iterator, Operation operation)
        : ::thrust::transform_iterator<Operation, Iterator, Value, Value>(iterator, operation) {}
};
CUB_NAMESPACE_END
#endif
"""
