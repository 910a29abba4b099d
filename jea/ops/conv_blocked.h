// Convolution of channel-blocked activations with oneDNN 2, forward and backward. See blocked.py.
//
// Primitives are kept; weights come and go as (O, I, H, W) and are reordered into `workspace`, of as many floats.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <dnnl.hpp>
#include "onednn.h"

namespace jea {

struct BlockedConv {
    ConvShape shape;
    int64_t block;
    bool plain_input, bias;  // the input is (B, C, H, W): a picture

    dnnl::memory::desc input(bool any = false) const {
        using tag = dnnl::memory::format_tag;
        return {{shape.batch, shape.channels, shape.height, shape.width}, dnnl::memory::data_type::f32,
                !plain_input ? blocked() : any ? tag::any : tag::nchw};
    }
    dnnl::memory::desc output() const {
        return {{shape.batch, shape.out_channels, shape.out_height(), shape.out_width()},
                dnnl::memory::data_type::f32, blocked()};
    }
    dnnl::memory::desc weights() const {
        return {weight_dims(shape), dnnl::memory::data_type::f32, dnnl::memory::format_tag::any};
    }
    dnnl::memory::desc biases() const {
        return {{shape.out_channels}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::x};
    }
    dnnl::memory::dims strides() const { return {shape.stride, shape.stride}; }
    dnnl::memory::dims dilations() const { return {shape.dilation - 1, shape.dilation - 1}; }
    dnnl::memory::dims padding() const { return {shape.padding, shape.padding}; }

private:
    dnnl::memory::format_tag blocked() const {
        return block == 16 ? dnnl::memory::format_tag::nChw16c : dnnl::memory::format_tag::nChw8c;
    }
};

constexpr auto kDirect = dnnl::algorithm::convolution_direct;

inline dnnl::convolution_forward::primitive_desc forward_description(const BlockedConv& c, bool any_input = false) {
    const auto training = dnnl::prop_kind::forward_training;
    if (c.bias)
        return {{training, kDirect, c.input(any_input), c.weights(), c.biases(), c.output(), c.strides(), c.dilations(),
                 c.padding(), c.padding()}, conv_engine()};
    return {{training, kDirect, c.input(any_input), c.weights(), c.output(), c.strides(), c.dilations(), c.padding(),
             c.padding()}, conv_engine()};
}

// A primitive with the layout of its weights, and what reorders them from or to (O, I, H, W).
struct PreparedBlocked {
    dnnl::primitive convolution;
    dnnl::memory::desc weights, input;
    dnnl::reorder reordering;
};

template <class Make>
PreparedBlocked& prepared_blocked(const BlockedConv& c, Make make) {
    constexpr size_t kMost = 1024;
    static std::unordered_map<std::string, std::unique_ptr<PreparedBlocked>> table;  // one for each kind of Make
    const ConvShape& s = c.shape;
    const int64_t numbers[] = {s.batch, s.height, s.width, s.channels, s.out_channels, s.kernel_h, s.kernel_w, s.stride,
                               s.padding, s.dilation, c.block, c.plain_input, c.bias};
    const std::string key(reinterpret_cast<const char*>(numbers), sizeof numbers);
    const auto found = table.find(key);
    if (found != table.end()) return *found->second;
    if (table.size() >= kMost) table.clear();
    return *(table[key] = std::unique_ptr<PreparedBlocked>(new PreparedBlocked(make())));
}

inline dnnl::reorder reordering(const dnnl::memory::desc& from, const dnnl::memory::desc& to) {
    return dnnl::reorder(dnnl::reorder::primitive_desc(conv_engine(), from, conv_engine(), to));
}

// The place for reordered weights: `workspace`, or memory of oneDNN where padding needs more.
inline dnnl::memory weights_memory(const dnnl::memory::desc& desc, float* workspace, int64_t floats) {
    return desc.get_size() <= floats * sizeof(float) ? memory_of(desc, workspace) : dnnl::memory(desc, conv_engine());
}

inline dnnl::memory packed_weights(PreparedBlocked& conv, const BlockedConv& c, const float* weight, float* workspace,
                                   int64_t floats, dnnl::stream& stream) {
    dnnl::memory plain = memory_of(plain_weights(c.shape), weight);
    if (conv.weights == plain.get_desc()) return plain;
    dnnl::memory packed = weights_memory(conv.weights, workspace, floats);
    conv.reordering.execute(stream, plain, packed);
    return packed;
}

// y = conv(x) + bias?
inline void blocked_conv_forward(const BlockedConv& c, const float* x, const float* weight, const float* bias, float* y,
                                 float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        const auto description = forward_description(c);
        return PreparedBlocked{dnnl::convolution_forward(description), description.weights_desc(), c.input(),
                               reordering(plain_weights(c.shape), description.weights_desc())};
    });
    dnnl::stream stream(conv_engine());
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, memory_of(c.input(), x)}, {DNNL_ARG_DST, memory_of(c.output(), y)},
        {DNNL_ARG_WEIGHTS, packed_weights(conv, c, weight, workspace, floats, stream)}};
    if (c.bias) arguments.emplace(DNNL_ARG_BIAS, memory_of(c.biases(), bias));
    conv.convolution.execute(stream, arguments);
    stream.wait();
}

// dx from dy.
inline void blocked_conv_backward_input(const BlockedConv& c, const float* dy, const float* weight, float* dx,
                                        float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        // A picture's gradient comes in whatever layout oneDNN has a fast kernel for.
        const dnnl::convolution_backward_data::primitive_desc description(
            {kDirect, c.input(true), c.weights(), c.output(), c.strides(), c.dilations(), c.padding(), c.padding()},
            conv_engine(), forward_description(c, true));
        return PreparedBlocked{dnnl::convolution_backward_data(description), description.weights_desc(),
                               description.diff_src_desc(),
                               reordering(plain_weights(c.shape), description.weights_desc())};
    });
    dnnl::stream stream(conv_engine());
    const bool direct = conv.input == c.input();
    dnnl::memory wanted = memory_of(c.input(), dx), found = direct ? wanted : dnnl::memory(conv.input, conv_engine());
    conv.convolution.execute(stream, {{DNNL_ARG_DIFF_DST, memory_of(c.output(), dy)}, {DNNL_ARG_DIFF_SRC, found},
        {DNNL_ARG_WEIGHTS, packed_weights(conv, c, weight, workspace, floats, stream)}});
    if (!direct) reordering(conv.input, c.input()).execute(stream, found, wanted);
    stream.wait();
}

// dweight and, with a bias, dbias from x and dy.
inline void blocked_conv_backward_weights(const BlockedConv& c, const float* x, const float* dy, float* dweight,
                                          float* dbias, float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        const auto forward = forward_description(c);
        using Description = dnnl::convolution_backward_weights::primitive_desc;
        const Description description = c.bias
            ? Description({kDirect, c.input(), c.weights(), c.biases(), c.output(), c.strides(), c.dilations(),
                           c.padding(), c.padding()}, conv_engine(), forward)
            : Description({kDirect, c.input(), c.weights(), c.output(), c.strides(), c.dilations(), c.padding(),
                           c.padding()}, conv_engine(), forward);
        return PreparedBlocked{dnnl::convolution_backward_weights(description), description.diff_weights_desc(),
                               c.input(), reordering(description.diff_weights_desc(), plain_weights(c.shape))};
    });
    dnnl::stream stream(conv_engine());
    dnnl::memory plain = memory_of(plain_weights(c.shape), dweight);
    const bool direct = conv.weights == plain.get_desc();
    dnnl::memory found = direct ? plain : weights_memory(conv.weights, workspace, floats);
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, memory_of(c.input(), x)}, {DNNL_ARG_DIFF_DST, memory_of(c.output(), dy)},
        {DNNL_ARG_DIFF_WEIGHTS, found}};
    if (c.bias) arguments.emplace(DNNL_ARG_DIFF_BIAS, memory_of(c.biases(), dbias));
    conv.convolution.execute(stream, arguments);
    if (!direct) conv.reordering.execute(stream, found, plain);
    stream.wait();
}

}  // namespace jea
