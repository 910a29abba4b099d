"""Operators. Each stands in a file of its own, with its formula, gradient and reference; README.md says how.

An operator is imported when it is first asked for, and Jittor with it: `support` does without.
"""
from __future__ import annotations

import importlib

_OPERATORS = {
    "attention.double_norm": ("double_norm",),
    "attention.external_attention": ("external_attention",),
    "convolution.blocked": ("batch_norm_blocked", "can_block", "conv2d_blocked", "from_blocked", "max_pool_blocked",
                            "to_blocked"),
    "convolution.conv": ("conv2d_nhwc", "conv_nhwc_unavailable", "pack_conv"),
    "normalisation.batch_norm": ("batch_norm",),
    "normalisation.layer_norm": ("layer_norm",),
    "pictures.max_pool": ("max_pool_nhwc",),
    "pictures.resize": ("resize_bilinear",),
    "pictures.soft_split": ("soft_split",),
    "points.farthest_point": ("farthest_point_sample",),
    "points.gather_points": ("gather_points",),
    "points.knn": ("knn",),
    "points.max_last": ("max_last",),
    "points.three_interpolate": ("three_interpolate",),
    "products.linear": ("linear",),
    "shapes.transpose": ("transpose",),
    "training.cross_entropy": ("cross_entropy",),
    "training.finite": ("all_finite", "clipped", "gathered"),
    "training.updates": ("adam_update", "moved", "sgd_update"),
}
_MODULES = {name: module for module, names in _OPERATORS.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'jea.ops' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"jea.ops.{_MODULES[name]}"), name)
    return value


def support(device: str | None = None) -> list:
    """A row for each operator: its name, the device, the types that its kernel takes there, or why there is none.

    Args:
        device: "cpu" or "cuda"; the one that jea chooses on this machine if None.
    """
    from jea import environment
    from jea.ops.common import declared
    found = environment.prepare()
    return declared.rows(device or found.device, onednn=bool(found.onednn))
