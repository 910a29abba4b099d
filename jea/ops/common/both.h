// For functions that the kernels for the CPU and for CUDA share.
#pragma once

#ifdef __CUDACC__
#define JEA_BOTH __host__ __device__
#else
#define JEA_BOTH
#endif
