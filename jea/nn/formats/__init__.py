"""Activation formats: how a picture's channels lie in memory between layers, and what runs each operation on them.

    nchw      (B, C, H, W): what users pass and get; Jittor's own convolution
    blocked   (B, C / L, H, W, L): oneDNN's blocks of channels, for training on the CPU
    nhwc      (B, H, W, C): for inference on the CPU (packed weights), and on CUDA for all (cuDNN's graphs)

A network's entrance calls `enter`, which chooses the format once, from device, mode and precision; `plain` at its
end gives a Var (B, C, H, W) in float32. In between, each operation looks into one table for what runs it. A convolution
brings its input into the network's format; everything else runs where its input lies. What has no kernel there is run
in nchw: the activation is converted at that place and stays so until the next convolution.

A layer that is called with a Var takes it as (B, C, H, W) and gives such a Var.
"""
from jea.nn.formats.activation import (
    LAYOUTS,
    Activation,
    Format,
    chosen,
    enter,
    inference,
    inferring,
    on_pictures,
    plain,
    using,
)
from jea.nn.formats.operations import (
    batch_norm,
    between_memories,
    channel_sums,
    concatenation,
    convolution,
    double_norm,
    dropout,
    max_pool,
    norm_by_sample,
    pairs,
    relu,
    resize,
    scale_channels,
    upsample,
)
from jea.nn.formats.way import way

__all__ = ["LAYOUTS", "Activation", "Format", "batch_norm", "between_memories", "channel_sums", "chosen",
           "concatenation", "convolution", "double_norm", "dropout", "enter", "inference", "inferring", "max_pool",
           "norm_by_sample", "on_pictures", "pairs", "plain", "relu", "resize", "scale_channels", "upsample", "using",
           "way"]
