// Products of matrices in bfloat16 with float32 sums, by oneDNN 2. See bfloat16.py.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <dnnl.hpp>
#include "common/onednn.h"

namespace jea {

// c (batch, m, n) = a (batch, m, k) b (batch, k, n). Transposed operands are stored as (batch, k, m) and (batch, n, k).
struct HalfProduct {
    int64_t batch, m, k, n;
    bool transposed_a, transposed_b;
};

inline dnnl::memory::desc matrices(int64_t batch, int64_t rows, int64_t columns, bool transposed, bool half) {
    using dnnl::memory;
    return {{batch, rows, columns}, half ? memory::data_type::bf16 : memory::data_type::f32,
            transposed ? memory::dims{rows * columns, 1, rows} : memory::dims{rows * columns, columns, 1}};
}

struct PreparedHalfProduct {
    dnnl::matmul primitive;
    dnnl::memory::desc a, b, c;
};

inline PreparedHalfProduct& prepared_half_product(const HalfProduct& p) {
    constexpr size_t kMost = 1024;
    static std::unordered_map<std::string, std::unique_ptr<PreparedHalfProduct>> table;
    const int64_t numbers[] = {p.batch, p.m, p.k, p.n, p.transposed_a, p.transposed_b};
    const std::string key(reinterpret_cast<const char*>(numbers), sizeof numbers);
    const auto found = table.find(key);
    if (found != table.end()) return *found->second;
    if (table.size() >= kMost) table.clear();
    const auto a = matrices(p.batch, p.m, p.k, p.transposed_a, true), b = matrices(p.batch, p.k, p.n, p.transposed_b, true),
               c = matrices(p.batch, p.m, p.n, false, false);
    std::unique_ptr<PreparedHalfProduct> made(new PreparedHalfProduct{
        dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), conv_engine())), a, b, c});
    return *(table[key] = std::move(made));
}

inline void round_to_half(const float* from, void* to, int64_t count) {
    using dnnl::memory;
    reorder(memory_of({{count}, memory::data_type::f32, memory::format_tag::x}, from),
            memory_of({{count}, memory::data_type::bf16, memory::format_tag::x}, to));
}

// a and b are float32; they are rounded into half_a and half_b.
inline void half_product(const HalfProduct& p, const float* a, const float* b, void* half_a, void* half_b, float* c) {
    round_to_half(a, half_a, p.batch * p.m * p.k);
    round_to_half(b, half_b, p.batch * p.k * p.n);
    PreparedHalfProduct& prepared = prepared_half_product(p);
    dnnl::stream stream(conv_engine());
    prepared.primitive.execute(stream, {{DNNL_ARG_SRC, memory_of(prepared.a, half_a)},
                                        {DNNL_ARG_WEIGHTS, memory_of(prepared.b, half_b)},
                                        {DNNL_ARG_DST, memory_of(prepared.c, c)}});
    stream.wait();
}

}  // namespace jea
