// Convolution of float16 and bfloat16 pictures (B, C, H, W) with cuDNN, and its gradients. See half.py.
//
// The sums run in float32. cuDNN's choice of an algorithm is by its rules, not by trial, and is kept for each geometry.
#pragma once
#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cudnn.h>

namespace jea {

inline void check_cudnn(cudnnStatus_t status, const char* what) {
    if (status != CUDNN_STATUS_SUCCESS)
        throw std::runtime_error(std::string("conv_half: ") + what + ": " + cudnnGetErrorString(status));
}

struct ConvGeometry {
    int batch, channels, height, width, out_channels, kernel_h, kernel_w, stride, padding, dilation;

    auto numbers() const {
        return std::tie(batch, channels, height, width, out_channels, kernel_h, kernel_w, stride, padding, dilation);
    }
    bool operator<(const ConvGeometry& other) const { return numbers() < other.numbers(); }

    int out_size(int size, int kernel) const { return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1; }
};

// The best algorithm that cuDNN says will work, and its scratch memory.
template <class Algorithm>
struct Choice {
    Algorithm algorithm;
    size_t bytes;

    template <class Result>
    static Choice first(const Result* results, int count) {
        for (int i = 0; i < count; i++)
            if (results[i].status == CUDNN_STATUS_SUCCESS) return {results[i].algo, results[i].memory};
        throw std::runtime_error("conv_half: cuDNN has no algorithm for this convolution");
    }
};

// One geometry. Its descriptors live as long as the process.
template <class Half>
class HalfConv {
public:
    HalfConv(const ConvGeometry& g, cudnnHandle_t handle) : handle_(handle) {
        const cudnnDataType_t type = std::is_same<Half, __half>::value ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16;
        check_cudnn(cudnnCreateTensorDescriptor(&x_), "descriptor");
        check_cudnn(cudnnCreateTensorDescriptor(&y_), "descriptor");
        check_cudnn(cudnnCreateFilterDescriptor(&w_), "descriptor");
        check_cudnn(cudnnCreateConvolutionDescriptor(&conv_), "descriptor");
        check_cudnn(cudnnSetTensor4dDescriptor(x_, CUDNN_TENSOR_NCHW, type, g.batch, g.channels, g.height, g.width),
                    "picture");
        check_cudnn(cudnnSetTensor4dDescriptor(y_, CUDNN_TENSOR_NCHW, type, g.batch, g.out_channels,
                                               g.out_size(g.height, g.kernel_h), g.out_size(g.width, g.kernel_w)),
                    "result");
        check_cudnn(cudnnSetFilter4dDescriptor(w_, type, CUDNN_TENSOR_NCHW, g.out_channels, g.channels, g.kernel_h,
                                               g.kernel_w), "weight");
        check_cudnn(cudnnSetConvolution2dDescriptor(conv_, g.padding, g.padding, g.stride, g.stride, g.dilation,
                                                    g.dilation, CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
                    "convolution");
        check_cudnn(cudnnSetConvolutionMathType(conv_, CUDNN_TENSOR_OP_MATH), "tensor cores");
    }

    // Scratch(bytes): an object whose `data` is so much memory of the device, for as long as it lives.
    template <class Scratch>
    void forward(const Half* x, const Half* w, Half* y) {
        if (!forward_.known) {
            cudnnConvolutionFwdAlgoPerf_t results[kMost];
            int count = 0;
            check_cudnn(cudnnGetConvolutionForwardAlgorithm_v7(handle_, x_, w_, conv_, y_, kMost, &count, results),
                        "algorithms");
            forward_.keep(Choice<cudnnConvolutionFwdAlgo_t>::first(results, count));
        }
        const Scratch workspace(forward_.choice.bytes);
        check_cudnn(cudnnConvolutionForward(handle_, &one, x_, x, w_, w, conv_, forward_.choice.algorithm,
                                            workspace.data, forward_.choice.bytes, &zero, y_, y), "forward");
    }

    template <class Scratch>
    void backward_input(const Half* dy, const Half* w, Half* dx) {
        if (!input_.known) {
            cudnnConvolutionBwdDataAlgoPerf_t results[kMost];
            int count = 0;
            check_cudnn(cudnnGetConvolutionBackwardDataAlgorithm_v7(handle_, w_, y_, conv_, x_, kMost, &count, results),
                        "algorithms");
            input_.keep(Choice<cudnnConvolutionBwdDataAlgo_t>::first(results, count));
        }
        const Scratch workspace(input_.choice.bytes);
        check_cudnn(cudnnConvolutionBackwardData(handle_, &one, w_, w, y_, dy, conv_, input_.choice.algorithm,
                                                 workspace.data, input_.choice.bytes, &zero, x_, dx),
                    "gradient of the picture");
    }

    template <class Scratch>
    void backward_weights(const Half* x, const Half* dy, Half* dw) {
        if (!weights_.known) {
            cudnnConvolutionBwdFilterAlgoPerf_t results[kMost];
            int count = 0;
            check_cudnn(cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle_, x_, y_, conv_, w_, kMost, &count,
                                                                      results), "algorithms");
            weights_.keep(Choice<cudnnConvolutionBwdFilterAlgo_t>::first(results, count));
        }
        const Scratch workspace(weights_.choice.bytes);
        check_cudnn(cudnnConvolutionBackwardFilter(handle_, &one, x_, x, y_, dy, conv_, weights_.choice.algorithm,
                                                   workspace.data, weights_.choice.bytes, &zero, w_, dw),
                    "gradient of the weight");
    }

private:
    template <class Algorithm>
    struct Kept {
        bool known = false;
        Choice<Algorithm> choice{};

        void keep(const Choice<Algorithm>& found) {
            choice = found;
            known = true;
        }
    };

    enum { kMost = 16 };  // algorithms
    float one = 1.f, zero = 0.f;

    cudnnHandle_t handle_;
    cudnnTensorDescriptor_t x_, y_;
    cudnnFilterDescriptor_t w_;
    cudnnConvolutionDescriptor_t conv_;
    Kept<cudnnConvolutionFwdAlgo_t> forward_;
    Kept<cudnnConvolutionBwdDataAlgo_t> input_;
    Kept<cudnnConvolutionBwdFilterAlgo_t> weights_;
};

// The convolutions met so far.
template <class Half>
class HalfConvs {
public:
    HalfConv<Half>& find(const ConvGeometry& geometry, cudnnHandle_t handle) {
        auto found = known_.find(geometry);
        if (found == known_.end()) found = known_.emplace(geometry, HalfConv<Half>(geometry, handle)).first;
        return found->second;
    }

private:
    std::map<ConvGeometry, HalfConv<Half>> known_;
};

}  // namespace jea
