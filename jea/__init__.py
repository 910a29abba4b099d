"""jea: External Attention (Guo et al., arXiv 2105.02358) in Jittor.

Importing jea looks at nothing and compiles nothing. Everything below is resolved on first use, and the environment is
prepared for Jittor (jea/environment) before anything imports it.
"""
from __future__ import annotations

import importlib

from jea import environment

__version__ = "0.1.0"

_PUBLIC = {
    "attention_maps": "jea.models.attention_maps",
    "create_model": "jea.models",
    "list_models": "jea.models",
    "ExternalAttention": "jea.nn",
    "Predictor": "jea.predictor",
    "MultiHeadExternalAttention": "jea.nn",
    "double_norm": "jea.ops",
    "fuse": "jea.nn.fold",
    "load_weights": "jea.checkpoint",
    "save_weights": "jea.checkpoint",
}
_MODULES = ("checkpoint", "config", "data", "draw", "export", "metrics", "models", "nn", "ops", "results", "tasks",
            "training")

__all__ = ["__version__", "environment", *_PUBLIC, *_MODULES]

environment.prepare_before_jittor()


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"jea.{name}")
    else:
        raise AttributeError(f"module 'jea' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
