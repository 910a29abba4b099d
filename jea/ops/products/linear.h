// Linear maps of rows with oneDNN 2, with bias, GELU or a summand in the same pass, and their gradients. See linear.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>
#include <dnnl.hpp>
#include "common/exp.h"
#include "common/onednn.h"

namespace jea {

struct Linear {
    long rows, in, out;
};

// Phi(x), the normal distribution's integral, and e = exp(-x^2 / 2), to 2e-7. For z = |x| / sqrt(2)
// erfc(z) exp(z^2) is a polynomial in t = 1 / (1 + 0.36 z), fitted to 4e-8 of erfc.
inline float normal_integral(float x, float& e) {
    e = exp_negative(-0.5f * x * x);
    const float t = 1.f / (1.f + 0.36f * 0.70710678f * std::fabs(x));
    float p = -0.16318408f;
    p = p * t + 0.56241184f;
    p = p * t - 0.35287343f;
    p = p * t + 0.42650968f;
    p = p * t + 0.1084766f;
    p = p * t + 0.21644221f;
    p = p * t + 0.20221722f;
    const float tail = 0.5f * p * t * e;
    return x > 0.f ? 1.f - tail : tail;
}

// gelu(x) = x Phi(x)
inline void gelu_forward(long count, const float* x, float* y) {
    #pragma omp parallel for simd
    for (long i = 0; i < count; i++) {
        float e;
        y[i] = x[i] * normal_integral(x[i], e);
    }
}

// dx = dy (Phi(x) + x phi(x))
inline void gelu_backward(long count, const float* x, const float* dy, float* dx) {
    #pragma omp parallel for simd
    for (long i = 0; i < count; i++) {
        float e;
        const float integral = normal_integral(x[i], e);
        dx[i] = dy[i] * (integral + 0.39894228f * x[i] * e);
    }
}

// c (m, n) = a (m, k) b (k, n) + bias (n), then GELU, then + summand (m, n). Transposed operands are stored as (k, m)
// and (n, k). The primitives are kept for the process; many batch sizes empty the table.
struct Product {
    long m, k, n;
    bool transposed_a, transposed_b, bias, gelu, summand;
};

struct PreparedProduct {
    dnnl::matmul primitive;
    dnnl::memory::desc a, b, bias, c;
};

inline PreparedProduct& prepared_product(const Product& p) {
    using dnnl::memory;
    constexpr size_t kMost = 1024;
    static std::unordered_map<std::string, std::unique_ptr<PreparedProduct>> table;
    const long numbers[] = {p.m, p.k, p.n, p.transposed_a, p.transposed_b, p.bias, p.gelu, p.summand};
    const std::string key(reinterpret_cast<const char*>(numbers), sizeof numbers);
    const auto found = table.find(key);
    if (found != table.end()) return *found->second;
    if (table.size() >= kMost) table.clear();
    const auto matrix = [](long rows, long columns, bool transposed) {
        return memory::desc({rows, columns}, memory::data_type::f32,
                            transposed ? memory::dims{1, rows} : memory::dims{columns, 1});
    };
    const memory::desc a = matrix(p.m, p.k, p.transposed_a), b = matrix(p.k, p.n, p.transposed_b),
                       bias = matrix(1, p.n, false), c = matrix(p.m, p.n, false);
    dnnl::post_ops post;
    if (p.gelu) post.append_eltwise(1.f, dnnl::algorithm::eltwise_gelu_erf, 0.f, 0.f);
    if (p.summand) post.append_binary(dnnl::algorithm::binary_add, c);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(post);
    const auto description = p.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    std::unique_ptr<PreparedProduct> made(new PreparedProduct{
        dnnl::matmul(dnnl::matmul::primitive_desc(description, attributes, conv_engine())), a, b, bias, c});
    return *(table[key] = std::move(made));
}

inline void product(const Product& p, const float* a, const float* b, const float* bias, const float* summand,
                    float* c) {
    if (!p.transposed_b && !p.bias && !p.gelu && !p.summand) {  // the primitive is slower here, by up to a half
        dnnl_sgemm(p.transposed_a ? 'T' : 'N', 'N', p.m, p.n, p.k, 1.f, a, p.transposed_a ? p.m : p.k, b, p.n, 0.f, c,
                   p.n);
        return;
    }
    PreparedProduct& prepared = prepared_product(p);
    dnnl::stream stream(conv_engine());
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, memory_of(prepared.a, a)}, {DNNL_ARG_WEIGHTS, memory_of(prepared.b, b)},
        {DNNL_ARG_DST, memory_of(prepared.c, c)}};
    if (p.bias) arguments.emplace(DNNL_ARG_BIAS, memory_of(prepared.bias, bias));
    if (p.summand)
        arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(p.gelu ? 1 : 0) | DNNL_ARG_SRC_1,
                          memory_of(prepared.c, summand));
    prepared.primitive.execute(stream, arguments);
    stream.wait();
}

// y = x w^T + bias? + summand?, or y = gelu(x w^T + bias?). With `before` (rows, out) GELU's argument is kept there.
inline void linear_forward(const Linear& d, bool gelu, const float* x, const float* w, const float* bias,
                           const float* summand, float* y, float* before) {
    const bool apart = gelu && before;
    product({d.rows, d.in, d.out, false, true, bias != nullptr, gelu && !apart, summand != nullptr}, x, w, bias,
            summand, apart ? before : y);
    if (apart) gelu_forward(d.rows * d.out, before, y);
}

// Sums over the rows, in blocks of fixed size: they do not depend on the number of threads.
inline void column_sums(long rows, long columns, const float* x, float* sums) {
    const long block = std::max((rows + 63) / 64, 32L), blocks = (rows + block - 1) / block;
    std::vector<float> partial(blocks * columns);
    #pragma omp parallel for
    for (long b = 0; b < blocks; b++) {
        float* to = &partial[b * columns];
        for (long r = b * block; r < std::min((b + 1) * block, rows); r++) {
            const float* row = x + r * columns;
            #pragma omp simd
            for (long i = 0; i < columns; i++) to[i] += row[i];
        }
    }
    for (long i = 0; i < columns; i++) {
        double sum = 0.;
        for (long b = 0; b < blocks; b++) sum += partial[b * columns + i];
        sums[i] = static_cast<float>(sum);
    }
}

// dx = g w, dw = g^T x, dbias = sum of g, where g = dy or, with GELU, dy gelu'(before), which goes to `scratch`.
inline void linear_backward(const Linear& d, bool gelu, const float* x, const float* w, const float* before,
                            const float* dy, float* dx, float* dw, float* dbias, float* scratch) {
    const float* g = dy;
    if (gelu) {
        gelu_backward(d.rows * d.out, before, dy, scratch);
        g = scratch;
    }
    product({d.rows, d.out, d.in, false, false, false, false, false}, g, w, nullptr, nullptr, dx);
    product({d.out, d.rows, d.in, true, false, false, false, false}, g, x, nullptr, nullptr, dw);
    if (dbias) column_sums(d.rows, d.out, g, dbias);
}

}  // namespace jea
