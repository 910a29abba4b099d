// Convolution of channels-last activations with oneDNN 2. See conv.py.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>
#include <dnnl.hpp>
#include "common/onednn.h"

namespace jea {

// What travels in a jt.Var of kDescriptorBytes bytes: the layout of the packed weights and its size.
constexpr size_t kDescriptorBytes = 1024;
struct PackedLayout {
    int64_t bytes;
    dnnl_memory_desc_t weights;
};
static_assert(sizeof(PackedLayout) <= kDescriptorBytes, "the descriptor of oneDNN has grown");

enum After { kNothing = 0, kRelu = 1, kGelu = 2 };  // the sum

// What runs in bfloat16: the product (input and weights), and the output. Sums and bias are float32.
struct ConvTypes {
    bool product, output;
};

inline dnnl::memory::data_type float_type(bool half) {
    return half ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

inline dnnl::memory::desc nhwc(int64_t batch, int64_t height, int64_t width, int64_t channels, bool half) {
    return {{batch, channels, height, width}, float_type(half), dnnl::memory::format_tag::nhwc};
}

// Inputs and outputs are channels-last; the layout of the weights is oneDNN's choice.
inline dnnl::convolution_forward::primitive_desc conv_description(const ConvShape& s, ConvTypes types, After after,
                                                                  bool residual) {
    using dnnl::memory;
    dnnl::post_ops post;
    if (residual) post.append_sum(1.f);
    if (after == kRelu) post.append_eltwise(1.f, dnnl::algorithm::eltwise_relu, 0.f, 0.f);
    if (after == kGelu) post.append_eltwise(1.f, dnnl::algorithm::eltwise_gelu_erf, 0.f, 0.f);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(post);
    const memory::dims strides{s.stride, s.stride}, padding{s.padding, s.padding},
        dilation{s.dilation - 1, s.dilation - 1};
    const dnnl::convolution_forward::desc description(
        dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct,
        nhwc(s.batch, s.height, s.width, s.channels, types.product),
        memory::desc(weight_dims(s), float_type(types.product), memory::format_tag::any),
        memory::desc({s.out_channels}, memory::data_type::f32, memory::format_tag::x),
        nhwc(s.batch, s.out_height(), s.out_width(), s.out_channels, types.output), strides, dilation, padding, padding);
    return {description, attributes, conv_engine()};
}

// The layout that oneDNN wants for this shape, into a descriptor of kDescriptorBytes.
inline void conv_layout(const ConvShape& s, bool half, uint8_t* descriptor) {
    const auto weights = conv_description(s, {half, half}, kRelu, false).weights_desc();
    PackedLayout layout;
    std::memset(&layout, 0, sizeof layout);
    layout.bytes = weights.get_size();
    layout.weights = weights.data;
    std::memset(descriptor, 0, kDescriptorBytes);
    std::memcpy(descriptor, &layout, sizeof layout);
}

inline dnnl::memory::desc packed_desc(const uint8_t* descriptor) {
    PackedLayout layout;
    std::memcpy(&layout, descriptor, sizeof layout);
    return dnnl::memory::desc(layout.weights);
}

// (O, I, H, W), times scale (O) -> the layout of the descriptor.
inline void conv_pack(const ConvShape& s, const float* weight, const float* scale, const uint8_t* descriptor,
                      float* packed) {
    dnnl::primitive_attr attributes;
    attributes.set_output_scales(1 << 0, std::vector<float>(scale, scale + s.out_channels));
    reorder(dnnl::memory(plain_weights(s), conv_engine(), const_cast<float*>(weight)),
            dnnl::memory(packed_desc(descriptor), conv_engine(), packed), attributes);
}

struct PreparedConv {
    dnnl::convolution_forward primitive;
    dnnl::memory::desc src, weights, bias, dst;
};

// One primitive per shape and kind, kept for the process; a picture collection of many sizes empties the table.
inline PreparedConv& prepared_conv(const ConvShape& s, ConvTypes types, After after, bool residual) {
    constexpr size_t kMost = 1024;
    static std::unordered_map<std::string, std::unique_ptr<PreparedConv>> table;
    const int64_t numbers[] = {s.batch, s.height, s.width, s.channels, s.out_channels, s.kernel_h, s.kernel_w,
                               s.stride, s.padding, s.dilation, after, residual, types.product, types.output};
    const std::string key(reinterpret_cast<const char*>(numbers), sizeof numbers);
    const auto found = table.find(key);
    if (found != table.end()) return *found->second;
    if (table.size() >= kMost) table.clear();
    const auto description = conv_description(s, types, after, residual);
    std::unique_ptr<PreparedConv> made(
        new PreparedConv{dnnl::convolution_forward(description), description.src_desc(), description.weights_desc(),
                         description.bias_desc(), description.dst_desc()});
    return *(table[key] = std::move(made));
}

// y = after(conv(x) + bias + y?): with `residual` the output holds the summand already. A float32 x of a product in
// bfloat16 is rounded into `rounded`.
inline void conv_forward(const ConvShape& s, ConvTypes types, After after, bool residual, const void* x, void* rounded,
                         const float* packed, const uint8_t* descriptor, const float* bias, void* y) {
    using dnnl::memory;
    PreparedConv& conv = prepared_conv(s, types, after, residual);
    dnnl::stream stream(conv_engine());
    memory weights = memory_of(packed_desc(descriptor), packed);
    if (conv.weights != weights.get_desc()) {  // packed for another picture size
        // By way of the plain layout: between two blocked ones oneDNN has only a slow reference.
        memory::desc plain_desc(weight_dims(s), float_type(types.product), memory::format_tag::oihw);
        memory plain(plain_desc, conv_engine()), wanted(conv.weights, conv_engine());
        reorder(weights, plain);
        reorder(plain, wanted);
        weights = wanted;
    }
    if (rounded) {
        reorder(memory_of(nhwc(s.batch, s.height, s.width, s.channels, false), x), memory_of(conv.src, rounded));
        x = rounded;
    }
    conv.primitive.execute(stream, {{DNNL_ARG_SRC, memory_of(conv.src, x)}, {DNNL_ARG_WEIGHTS, weights},
                                    {DNNL_ARG_BIAS, memory_of(conv.bias, bias)}, {DNNL_ARG_DST, memory_of(conv.dst, y)}});
    stream.wait();
}

template <class T>
inline void copy(const T* from, T* to, int64_t count) {
    #pragma omp parallel for simd
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
}

}  // namespace jea
