"""Convolutions of channels-last pictures on cuDNN's graph interface (CUDA)."""
from jea.ops.convolution.cudnn.check import unavailable, verdicts
from jea.ops.convolution.cudnn.operator import conv2d, conv2d_reference
from jea.ops.convolution.cudnn.plans import choose_by_rule

__all__ = ["choose_by_rule", "conv2d", "conv2d_reference", "unavailable", "verdicts"]
