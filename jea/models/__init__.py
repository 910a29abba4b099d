"""The models by name. Each family is one file with its ENTRY_POINTS: name -> (class, fixed arguments)."""
from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect

# Literal, so that names can be listed without importing Jittor; a test compares it with the families' ENTRY_POINTS.
MODELS = {
    "eanet_resnet50": "eanet",
    "eanet_resnet101": "eanet",
    "eanet_resnet152": "eanet",
    "eanet_tiny": "eanet",
}


def list_models(pattern: str = "*") -> list:
    """Model names that match a shell pattern, sorted: list_models("eanet*")."""
    return sorted(fnmatch.filter(MODELS, pattern), key=lambda name: (MODELS[name], len(name), name))


def create_model(name: str, **kwargs):
    """A new model with the family's initialisation, in training mode.

    Args:
        name: one of list_models().
        kwargs: keywords of the family's class, e.g. num_classes=21, output_stride=8 for "eanet_*".
    Raises:
        ValueError: unknown name or keyword, with the nearest valid one.
    """
    cls, fixed = _entry(name)
    allowed = model_arguments(name)
    for key in kwargs:
        if key not in allowed:
            raise ValueError(f"{name}: unknown argument {key}; it takes {', '.join(allowed)}{_nearest(key, allowed)}")
    model = cls(**fixed, **kwargs)
    model.train()
    return model


def model_arguments(name: str) -> dict:
    """The keywords that a model takes: name -> inspect.Parameter."""
    cls, fixed = _entry(name)
    return {key: p for key, p in inspect.signature(cls).parameters.items() if key not in fixed}


def infer_kwargs(name: str, tensors: dict) -> dict:
    """The arguments of create_model(name) that a checkpoint's tensors tell, such as num_classes."""
    _entry(name)
    return _family(name).infer_kwargs(tensors)


def _family(name: str):
    return importlib.import_module(f"jea.models.{MODELS[name]}")


def _entry(name: str):
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(list_models())}{_nearest(name, MODELS)}")
    return _family(name).ENTRY_POINTS[name]


def _nearest(word: str, words) -> str:
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
