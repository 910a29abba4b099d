// Convolution of channel-blocked activations with oneDNN 2, forward and backward. See blocked.py.
//
// Primitives are kept; weights come and go as (O, I, H, W) and are reordered into `workspace`, of as many floats.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <dnnl.hpp>
#include "common/onednn.h"

namespace jea {

struct BlockedConv {
    ConvShape shape;
    int64_t block;
    bool plain_input, bias;  // the input is (B, C, H, W): a picture
    bool half;  // operands of products are rounded to bfloat16; what comes and goes is float32
    bool residual, relu;  // y = relu?(conv(x) + bias + residual?)
    bool half_residual;   // of half the height and width: each of its cells is added to four

    using tag = dnnl::memory::format_tag;
    tag blocked() const { return block == 16 ? tag::nChw16c : tag::nChw8c; }
    // `layout` is blocked() or another one that oneDNN can have instead; `operand`: of a product, else its result.
    dnnl::memory::desc input(tag layout, bool operand = false) const {
        return {{shape.batch, shape.channels, shape.height, shape.width}, type(operand),
                plain_input && layout == blocked() ? tag::nchw : layout};
    }
    dnnl::memory::desc output(tag layout, bool operand = false) const {
        return {{shape.batch, shape.out_channels, shape.out_height(), shape.out_width()}, type(operand), layout};
    }
    dnnl::memory::desc input() const { return input(blocked()); }
    dnnl::memory::desc output() const { return output(blocked()); }
    dnnl::memory::desc weights(bool operand = true) const { return {weight_dims(shape), type(operand), tag::any}; }
    dnnl::memory::data_type type(bool operand) const {
        return half && operand ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
    }
    dnnl::memory::desc biases() const { return {{shape.out_channels}, dnnl::memory::data_type::f32, tag::x}; }
    dnnl::memory::dims strides() const { return {shape.stride, shape.stride}; }
    dnnl::memory::dims dilations() const { return {shape.dilation - 1, shape.dilation - 1}; }
    dnnl::memory::dims padding() const { return {shape.padding, shape.padding}; }
};

constexpr auto kDirect = dnnl::algorithm::convolution_direct;

// `whole`: with what follows the sum; the gradients' descriptions take one without.
inline dnnl::convolution_forward::primitive_desc forward_description(const BlockedConv& c, BlockedConv::tag layout,
                                                                     bool whole = false) {
    const auto training = dnnl::prop_kind::forward_training;
    dnnl::post_ops after;
    if (whole && c.residual) after.append_sum(1.f);
    if (whole && c.relu) after.append_eltwise(1.f, dnnl::algorithm::eltwise_relu, 0.f, 0.f);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(after);
    if (c.bias)
        return {{training, kDirect, c.input(layout, true), c.weights(), c.biases(), c.output(layout), c.strides(),
                 c.dilations(), c.padding(), c.padding()}, attributes, conv_engine()};
    return {{training, kDirect, c.input(layout, true), c.weights(), c.output(layout), c.strides(), c.dilations(), c.padding(),
             c.padding()}, attributes, conv_engine()};
}

// The description in the first layout for which oneDNN has more than its reference: a 3x3 with dilation 16, say, has
// no other kernel for blocked activations, and the reference is a thousand times slower.
template <class Describe>
auto fast_description(const BlockedConv& c, Describe describe) -> decltype(describe(BlockedConv::tag::any)) {
    for (const auto layout : {c.blocked(), BlockedConv::tag::nhwc}) {
        auto description = describe(layout);
        if (std::strncmp(description.impl_info_str(), "ref", 3) != 0) return description;
    }
    return describe(BlockedConv::tag::any);
}

// A primitive with the layouts that it wants, and what reorders weights from or to (O, I, H, W).
struct PreparedBlocked {
    dnnl::primitive convolution;
    dnnl::memory::desc input, weights, output;
    dnnl::reorder reordering;
};

template <class Make>
PreparedBlocked& prepared_blocked(const BlockedConv& c, Make make) {
    constexpr size_t kMost = 1024;
    static std::unordered_map<std::string, std::unique_ptr<PreparedBlocked>> table;  // one for each kind of Make
    const ConvShape& s = c.shape;
    const int64_t numbers[] = {s.batch, s.height, s.width, s.channels, s.out_channels, s.kernel_h, s.kernel_w, s.stride,
                               s.padding, s.dilation, c.block, c.plain_input, c.bias, c.half, c.residual, c.relu, c.half_residual};
    const std::string key(reinterpret_cast<const char*>(numbers), sizeof numbers);
    const auto found = table.find(key);
    if (found != table.end()) return *found->second;
    if (table.size() >= kMost) table.clear();
    return *(table[key] = std::unique_ptr<PreparedBlocked>(new PreparedBlocked(make())));
}

inline dnnl::reorder reordering(const dnnl::memory::desc& from, const dnnl::memory::desc& to) {
    return dnnl::reorder(dnnl::reorder::primitive_desc(conv_engine(), from, conv_engine(), to));
}

// `ours` itself where it has the layout that the primitive wants, else other memory: as an input reordered, as an output
// to be handed back.
inline dnnl::memory wanted_input(dnnl::memory ours, const dnnl::memory::desc& wanted, dnnl::stream& stream) {
    if (ours.get_desc() == wanted) return ours;
    dnnl::memory other(wanted, conv_engine());
    reordering(ours.get_desc(), wanted).execute(stream, ours, other);
    return other;
}
inline dnnl::memory wanted_output(const dnnl::memory& ours, const dnnl::memory::desc& wanted) {
    return ours.get_desc() == wanted ? ours : dnnl::memory(wanted, conv_engine());
}
inline void hand_back(dnnl::memory found, dnnl::memory ours, dnnl::stream& stream) {
    if (found.get_desc() != ours.get_desc()) reordering(found.get_desc(), ours.get_desc()).execute(stream, found, ours);
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

// The weights, those of each output times its scale where there is one: in `scaled`, of as many floats.
inline const float* scaled_weights(const BlockedConv& c, const float* weight, const float* scale, float* scaled) {
    if (!scale) return weight;
    const int64_t outputs = c.shape.out_channels, each = c.shape.channels * c.shape.kernel_h * c.shape.kernel_w;
    #pragma omp parallel for
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < each; i++) scaled[o * each + i] = weight[o * each + i] * scale[o];
    return scaled;
}

// (planes, height / 2, width / 2, block) -> (planes, height, width, block), each cell four times.
inline void enlarge(const float* from, float* to, int64_t planes, int64_t height, int64_t width, int64_t block) {
    #pragma omp parallel for collapse(2)
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < height; i++)
            for (int64_t j = 0; j < width; j++)
                std::memcpy(to + ((p * height + i) * width + j) * block,
                            from + ((p * (height / 2) + i / 2) * (width / 2) + j / 2) * block, sizeof(float) * block);
}

// The gradient of enlarge.
inline void reduce_by_two(const float* from, float* to, int64_t planes, int64_t height, int64_t width, int64_t block) {
    #pragma omp parallel for collapse(2)
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < height / 2; i++)
            for (int64_t j = 0; j < width / 2; j++) {
                const float* cell = from + ((p * height + 2 * i) * width + 2 * j) * block;
                float* sum = to + ((p * (height / 2) + i) * (width / 2) + j) * block;
                for (int64_t l = 0; l < block; l++)
                    sum[l] = (cell[l] + cell[block + l]) + (cell[width * block + l] + cell[(width + 1) * block + l]);
            }
}

// y = relu?(conv(x) + bias? + residual?)
inline void blocked_conv_forward(const BlockedConv& c, const float* x, const float* weight, const float* bias,
                                 const float* residual, float* y, float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        const auto d = fast_description(c, [&](BlockedConv::tag layout) { return forward_description(c, layout, true); });
        return PreparedBlocked{dnnl::convolution_forward(d), d.src_desc(), d.weights_desc(), d.dst_desc(),
                               reordering(plain_weights(c.shape), d.weights_desc())};
    });
    dnnl::stream stream(conv_engine());
    dnnl::memory ours = memory_of(c.output(), y), found = wanted_output(ours, conv.output);
    if (c.residual) {  // the sum is made in place
        const ConvShape& s = c.shape;
        dnnl::memory summand = c.half_residual ? ours : memory_of(c.output(), residual);
        if (c.half_residual)
            enlarge(residual, y, s.batch * s.out_channels / c.block, s.out_height(), s.out_width(), c.block);
        if (summand.get_data_handle() != found.get_data_handle())
            reordering(summand.get_desc(), found.get_desc()).execute(stream, summand, found);
    }
    std::unordered_map<int, dnnl::memory> arguments{
        {DNNL_ARG_SRC, wanted_input(memory_of(c.input(), x), conv.input, stream)}, {DNNL_ARG_DST, found},
        {DNNL_ARG_WEIGHTS, packed_weights(conv, c, weight, workspace, floats, stream)}};
    if (c.bias) arguments.emplace(DNNL_ARG_BIAS, memory_of(c.biases(), bias));
    conv.convolution.execute(stream, arguments);
    hand_back(found, ours, stream);
    stream.wait();
}

// dx from dy.
inline void blocked_conv_backward_input(const BlockedConv& c, const float* dy, const float* weight, float* dx,
                                        float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        const auto d = fast_description(c, [&](BlockedConv::tag layout) {
            return dnnl::convolution_backward_data::primitive_desc(
                {kDirect, c.input(layout), c.weights(), c.output(layout, true), c.strides(), c.dilations(), c.padding(),
                 c.padding()}, conv_engine(), forward_description(c, layout));
        });
        return PreparedBlocked{dnnl::convolution_backward_data(d), d.diff_src_desc(), d.weights_desc(),
                               d.diff_dst_desc(), reordering(plain_weights(c.shape), d.weights_desc())};
    });
    dnnl::stream stream(conv_engine());
    dnnl::memory ours = memory_of(c.input(), dx), found = wanted_output(ours, conv.input);
    conv.convolution.execute(stream, {
        {DNNL_ARG_DIFF_DST, wanted_input(memory_of(c.output(), dy), conv.output, stream)}, {DNNL_ARG_DIFF_SRC, found},
        {DNNL_ARG_WEIGHTS, packed_weights(conv, c, weight, workspace, floats, stream)}});
    hand_back(found, ours, stream);
    stream.wait();
}

// dweight from x and dy.
inline void blocked_conv_backward_weights(const BlockedConv& c, const float* x, const float* dy, float* dweight,
                                          float* workspace, int64_t floats) {
    PreparedBlocked& conv = prepared_blocked(c, [&] {
        const auto d = fast_description(c, [&](BlockedConv::tag layout) {
            return dnnl::convolution_backward_weights::primitive_desc(
                {kDirect, c.input(layout, true), c.weights(false), c.output(layout, true), c.strides(), c.dilations(), c.padding(),
                 c.padding()}, conv_engine(), forward_description(c, layout));
        });
        return PreparedBlocked{dnnl::convolution_backward_weights(d), d.src_desc(), d.diff_weights_desc(),
                               d.diff_dst_desc(), reordering(d.diff_weights_desc(), plain_weights(c.shape))};
    });
    dnnl::stream stream(conv_engine());
    dnnl::memory plain = memory_of(plain_weights(c.shape), dweight);
    const bool direct = conv.weights == plain.get_desc();
    dnnl::memory found = direct ? plain : weights_memory(conv.weights, workspace, floats);
    conv.convolution.execute(stream, {
        {DNNL_ARG_SRC, wanted_input(memory_of(c.input(), x), conv.input, stream)},
        {DNNL_ARG_DIFF_DST, wanted_input(memory_of(c.output(), dy), conv.output, stream)},
        {DNNL_ARG_DIFF_WEIGHTS, found}});
    if (!direct) conv.reordering.execute(stream, found, plain);
    stream.wait();
}

}  // namespace jea
