// What the convolutions share: the engine of oneDNN 2, shapes, and reordering.
#pragma once
#include <cstdint>
#include <dnnl.hpp>

namespace jea {

struct ConvShape {
    int64_t batch, height, width, channels, out_channels, kernel_h, kernel_w, stride, padding, dilation;

    int64_t out_height() const { return out(height, kernel_h); }
    int64_t out_width() const { return out(width, kernel_w); }

private:
    int64_t out(int64_t size, int64_t kernel) const {
        return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    }
};

inline const dnnl::engine& conv_engine() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

inline dnnl::memory::dims weight_dims(const ConvShape& s) {
    return {s.out_channels, s.channels, s.kernel_h, s.kernel_w};
}

inline dnnl::memory::desc plain_weights(const ConvShape& s) {
    return {weight_dims(s), dnnl::memory::data_type::f32, dnnl::memory::format_tag::oihw};
}

inline dnnl::memory memory_of(const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, conv_engine(), const_cast<void*>(data));
}

inline void reorder(dnnl::memory from, dnnl::memory to, const dnnl::primitive_attr& attributes = {}) {
    dnnl::stream stream(conv_engine());
    dnnl::reorder(from, to, attributes).execute(stream, from, to);
    stream.wait();
}

}  // namespace jea
