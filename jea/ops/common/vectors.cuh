// Loads and stores of several neighbouring elements at once: 16 bytes of a thread move in one instruction.
#pragma once
#include <cstdint>
#include <cuda_runtime.h>

namespace jea {

template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
    T of[V];
};

template <class T>
constexpr int kWidest = 16 / sizeof(T);

// `from` must be aligned to V elements.
template <int V, class T>
__device__ Vector<T, V> load(const T* from) {
    return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <int V, class T>
__device__ Vector<T, V> filled(float value) {
    Vector<T, V> all;
    #pragma unroll
    for (int i = 0; i < V; i++) all.of[i] = static_cast<T>(value);
    return all;
}

template <int kBytes> struct Word;
template <> struct Word<2> { using Type = unsigned short; };
template <> struct Word<4> { using Type = unsigned; };
template <> struct Word<8> { using Type = uint2; };
template <> struct Word<16> { using Type = uint4; };

// Goes first when the second-level cache runs full, so that what is read again stays there.
template <int V, class T>
__device__ void store(T* to, const Vector<T, V>& value) {
    using Type = typename Word<sizeof(value)>::Type;
    __stcs(reinterpret_cast<Type*>(to), reinterpret_cast<const Type&>(value));
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace jea
