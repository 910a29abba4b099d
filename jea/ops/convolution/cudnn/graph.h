// A convolution of channels-last pictures, or one of its gradients, on cuDNN's graph interface. See operator.py.
//
// The interface is cuDNN's own, in C. NVIDIA's header-only C++ library over it (cudnn-frontend 1.32) takes the compiler 44
// seconds with g++ and 85 with nvcc; this takes one.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include <cudnn.h>

namespace jea {

inline void expect(cudnnStatus_t status, const char* what) {
    if (status != CUDNN_STATUS_SUCCESS) throw std::runtime_error(std::string(what) + ": " + cudnnGetErrorString(status));
}

// One of cuDNN's descriptors.
class Descriptor {
public:
    explicit Descriptor(cudnnBackendDescriptorType_t type) {
        expect(cudnnBackendCreateDescriptor(type, &made_), "creating a descriptor");
    }
    Descriptor(Descriptor&& other) noexcept : made_(std::exchange(other.made_, nullptr)) {}
    Descriptor& operator=(Descriptor&& other) noexcept { std::swap(made_, other.made_); return *this; }
    ~Descriptor() { if (made_) cudnnBackendDestroyDescriptor(made_); }

    Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const void* values,
                    int64_t count = 1) {
        expect(cudnnBackendSetAttribute(made_, name, type, count, values), "an attribute");
        return *this;
    }
    Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& part) {
        return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &part.made_);
    }
    Descriptor& set(cudnnBackendAttributeName_t name, int64_t value) { return set(name, CUDNN_TYPE_INT64, &value); }
    Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<int64_t>& values) {
        return set(name, CUDNN_TYPE_INT64, values.data(), static_cast<int64_t>(values.size()));
    }
    Descriptor& set_type(cudnnBackendAttributeName_t name, cudnnDataType_t type) {
        return set(name, CUDNN_TYPE_DATA_TYPE, &type);
    }
    Descriptor& set_all(cudnnBackendAttributeName_t name, const std::vector<Descriptor>& parts) {
        std::vector<cudnnBackendDescriptor_t> raw;
        for (const Descriptor& part : parts) raw.push_back(part.made_);
        return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw.data(), static_cast<int64_t>(raw.size()));
    }
    Descriptor& finish(const char* what) {
        expect(cudnnBackendFinalize(made_), what);
        return *this;
    }

    int64_t number(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type = CUDNN_TYPE_INT64) const {
        int64_t value = 0, count = 0;
        expect(cudnnBackendGetAttribute(made_, name, type, 1, &count, &value), "reading an attribute");
        return value;
    }
    // Fills `parts`, descriptors of the right type, and leaves as many as there are.
    void get_all(cudnnBackendAttributeName_t name, std::vector<Descriptor>& parts) const {
        std::vector<cudnnBackendDescriptor_t> raw;
        for (const Descriptor& part : parts) raw.push_back(part.made_);
        int64_t count = 0;
        expect(cudnnBackendGetAttribute(made_, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
                                        &count, raw.data()), "reading descriptors");
        while (static_cast<int64_t>(parts.size()) > count) parts.pop_back();
    }

    cudnnBackendDescriptor_t get() const { return made_; }

private:
    cudnnBackendDescriptor_t made_ = nullptr;
};

inline std::vector<Descriptor> descriptors(cudnnBackendDescriptorType_t type, int count) {
    std::vector<Descriptor> made;
    for (int i = 0; i < count; i++) made.emplace_back(type);
    return made;
}

enum class Pass { forward = 0, data = 1, weight = 2 };

// What is to be computed. Pictures are (B, H, W, C), weights (O, kH, kW, I), in memory.
struct Convolution {
    Pass pass;
    cudnnDataType_t type;
    bool tf32;  // float32 may be multiplied with 10 bits of mantissa
    bool deterministic;
    int64_t batch, height, width, channels, out_channels, kernel_h, kernel_w, stride, padding, dilation;
    bool bias, residual, relu;  // of the forward pass: y = relu(conv(x) + residual + bias)

    int64_t out_size(int64_t size, int64_t kernel) const {
        return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    }
    int64_t out_height() const { return out_size(height, kernel_h); }
    int64_t out_width() const { return out_size(width, kernel_w); }
    int64_t x_values() const { return batch * height * width * channels; }
    int64_t w_values() const { return out_channels * kernel_h * kernel_w * channels; }
    int64_t y_values() const { return batch * out_height() * out_width() * out_channels; }
    int64_t bytes_each() const { return type == CUDNN_DATA_FLOAT ? 4 : 2; }
};

enum : int64_t { kX = 1, kW = 2, kY = 3, kBias = 4, kResidual = 5, kFirstVirtual = 10 };

// A tensor with the sizes (n, c, h, w) whose memory is channels-last; `id` from kFirstVirtual on: it never reaches memory.
inline Descriptor tensor(int64_t id, cudnnDataType_t type, int64_t n, int64_t c, int64_t h, int64_t w) {
    Descriptor made(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const bool is_virtual = id >= kFirstVirtual;
    made.set_type(CUDNN_ATTR_TENSOR_DATA_TYPE, type)
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::vector<int64_t>{n, c, h, w})
        .set(CUDNN_ATTR_TENSOR_STRIDES, std::vector<int64_t>{h * w * c, 1, w * c, c})
        .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id)
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int64_t{16})
        .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, &is_virtual);
    made.finish("a tensor");
    return made;
}

inline Descriptor pointwise(cudnnPointwiseMode_t mode, const Descriptor& in, const Descriptor* summand,
                            const Descriptor& out) {
    Descriptor what(CUDNN_BACKEND_POINTWISE_DESCRIPTOR), made(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    what.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, &mode)
        .set_type(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT).finish("a pointwise operation");
    made.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, what).set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, in);
    if (summand) made.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *summand);
    made.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out).finish("a pointwise operation");
    return made;
}

inline Descriptor convolution_graph(const Convolution& c, cudnnHandle_t handle) {
    const int64_t axes = 2, out_h = c.out_height(), out_w = c.out_width();
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    Descriptor conv(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    conv.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, axes)
        .set_type(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
        .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, &mode)
        .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, std::vector<int64_t>(2, c.padding))
        .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, std::vector<int64_t>(2, c.padding))
        .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, std::vector<int64_t>(2, c.dilation))
        .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, std::vector<int64_t>(2, c.stride)).finish("a convolution");
    const auto result = [&](int64_t id, cudnnDataType_t type) {
        return tensor(id, type, c.batch, c.out_channels, out_h, out_w);
    };
    const Descriptor x = tensor(kX, c.type, c.batch, c.channels, c.height, c.width);
    const Descriptor w = tensor(kW, c.type, c.out_channels, c.channels, c.kernel_h, c.kernel_w);
    const Descriptor y = result(kY, c.type);
    const float one = 1.f, zero = 0.f;
    std::vector<Descriptor> operations, between;
    if (c.pass == Pass::data) {
        Descriptor made(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
        made.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_TYPE_FLOAT, &one)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, CUDNN_TYPE_FLOAT, &zero).finish("the picture's gradient");
        operations.push_back(std::move(made));
    } else if (c.pass == Pass::weight) {
        Descriptor made(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
        made.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_TYPE_FLOAT, &one)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, CUDNN_TYPE_FLOAT, &zero)
            .finish("the weight's gradient");
        operations.push_back(std::move(made));
    } else {
        // conv -> + residual -> + bias -> relu, each into a tensor of its own, the last into y
        std::vector<std::pair<cudnnPointwiseMode_t, int64_t>> steps;
        if (c.residual) steps.emplace_back(CUDNN_POINTWISE_ADD, kResidual);
        if (c.bias) steps.emplace_back(CUDNN_POINTWISE_ADD, kBias);
        if (c.relu) steps.emplace_back(CUDNN_POINTWISE_RELU_FWD, 0);
        for (size_t i = 0; i < steps.size(); i++)
            between.push_back(result(kFirstVirtual + static_cast<int64_t>(i), CUDNN_DATA_FLOAT));
        Descriptor made(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
        made.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, steps.empty() ? y : between[0])
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, &one)
            .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, &zero).finish("the convolution");
        operations.push_back(std::move(made));
        for (size_t i = 0; i < steps.size(); i++) {
            std::vector<Descriptor> summand;
            if (steps[i].second == kResidual) summand.push_back(result(kResidual, c.type));
            if (steps[i].second == kBias) summand.push_back(tensor(kBias, CUDNN_DATA_FLOAT, 1, c.out_channels, 1, 1));
            operations.push_back(pointwise(steps[i].first, between[i], summand.empty() ? nullptr : &summand[0],
                                           i + 1 == steps.size() ? y : between[i + 1]));
        }
    }
    Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &handle)
        .set_all(CUDNN_ATTR_OPERATIONGRAPH_OPS, operations).finish("the graph");
    return graph;
}

}  // namespace jea
