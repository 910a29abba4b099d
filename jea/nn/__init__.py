"""Layers that two or more models share."""
from jea.nn.blocks import ConvBNReLU, Dropout2d, FCNHead
from jea.nn.external_attention import ExternalAttention, MultiHeadExternalAttention
from jea.nn.fold import fuse
from jea.nn.norm import BatchNorm1d, BatchNorm2d, LayerNorm
from jea.nn.resnet import Bottleneck, DeepStemResNet

__all__ = ["BatchNorm1d", "BatchNorm2d", "Bottleneck", "ConvBNReLU", "DeepStemResNet", "Dropout2d",
           "ExternalAttention", "FCNHead", "LayerNorm", "MultiHeadExternalAttention", "fuse"]
