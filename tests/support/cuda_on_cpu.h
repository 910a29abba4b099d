// Runs CUDA kernels on the CPU, for tests: a thread is a coroutine, blocks run one after the other. See cuda_on_cpu.py.
//
// What the kernels of jea/ops use and no more: one- to three-dimensional grids, static shared memory, __syncthreads,
// __shfl_xor_sync and __shfl_down_sync of whole warps. Every thread of a block or warp that has not ended must reach
// the same barrier, or the run stops with a message.
#pragma once
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
using std::min;
using std::max;

namespace cuda_on_cpu {

enum class Waits { kNothing, kWarp, kBlock };

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    dim3 index;
    Waits waits;
    bool ended;
    uint64_t lane_value;
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Thread>> threads;
inline size_t running;
inline std::function<void()> body;
inline dim3 grid, block, block_index;

inline Thread& self() { return *threads[running]; }

inline void wait(Waits what) {
    Thread& thread = self();
    thread.waits = what;
    swapcontext(&thread.context, &scheduler);
}

inline void enter() {
    body();
    self().ended = true;
    swapcontext(&self().context, &scheduler);
}

inline void run_block() {
    const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
    while (threads.size() < count) {
        threads.emplace_back(new Thread());
        threads.back()->stack.resize(64 << 10);
    }
    for (size_t i = 0; i < count; i++) {
        Thread& t = *threads[i];
        t.index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
        t.waits = Waits::kNothing;
        t.ended = false;
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data();
        t.context.uc_stack.ss_size = t.stack.size();
        t.context.uc_link = nullptr;
        makecontext(&t.context, enter, 0);
    }
    for (;;) {
        for (running = 0; running < count; running++)
            if (!self().ended && self().waits == Waits::kNothing) swapcontext(&scheduler, &self().context);
        size_t live = 0, at_block = 0;
        bool released = false;
        for (size_t warp = 0; warp < count; warp += 32) {
            size_t here = 0, at_warp = 0;
            for (size_t i = warp; i < std::min(warp + 32, count); i++) {
                here += !threads[i]->ended;
                at_warp += !threads[i]->ended && threads[i]->waits == Waits::kWarp;
                at_block += !threads[i]->ended && threads[i]->waits == Waits::kBlock;
            }
            live += here;
            if (here && at_warp == here) {
                for (size_t i = warp; i < std::min(warp + 32, count); i++) threads[i]->waits = Waits::kNothing;
                released = true;
            }
        }
        if (live == 0) return;
        if (at_block == live) {
            for (size_t i = 0; i < count; i++) threads[i]->waits = Waits::kNothing;
            released = true;
        }
        if (!released) {
            std::fprintf(stderr, "cuda_on_cpu: threads of one block wait at different barriers\n");
            std::abort();
        }
    }
}

template <class Kernel>
void launch(dim3 the_grid, dim3 the_block, Kernel kernel) {
    grid = the_grid;
    block = the_block;
    if (block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535 || !grid.x || !grid.y || !grid.z) {
        std::fprintf(stderr, "cuda_on_cpu: CUDA refuses such a launch\n");
        std::abort();
    }
    body = kernel;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = dim3(x, y, z);
                run_block();
            }
}

template <class T>
T exchange(T value, size_t with) {
    std::memcpy(&self().lane_value, &value, sizeof value);
    wait(Waits::kWarp);
    if (with < threads.size()) std::memcpy(&value, &threads[with]->lane_value, sizeof value);
    wait(Waits::kWarp);
    return value;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::self().index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block)
#define gridDim (cuda_on_cpu::grid)

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::Waits::kBlock); }
inline void __syncwarp() { cuda_on_cpu::wait(cuda_on_cpu::Waits::kWarp); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) { return cuda_on_cpu::exchange(value, cuda_on_cpu::running ^ mask); }
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by) {
    const size_t own = cuda_on_cpu::running;
    return cuda_on_cpu::exchange(value, own % 32 + by < 32 ? own + by : own);
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) { return cuda_on_cpu::exchange(value, cuda_on_cpu::running / 32 * 32 + lane); }

inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    const unsigned long long before = *address;
    *address += value;
    return before;
}
inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float normcdff(float a) { return 0.5f * std::erfc(-0.70710678f * a); }
inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }
template <class T>
T __ldg(const T* address) { return *address; }
template <class T>
void __stcs(T* address, const T& value) {
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {
        std::fprintf(stderr, "cuda_on_cpu: a store is not aligned\n");
        std::abort();
    }
    *address = value;
}
