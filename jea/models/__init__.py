"""The models by name. Each family is one file with its ENTRY_POINTS: name -> (class, fixed arguments)."""
from __future__ import annotations

import fnmatch
import importlib
import numbers

from jea.errors import ConfigError, nearest, quoted, shortened
from jea.models.signatures import entry_arguments, own_arguments
from jea.named import find_class

# Literal, so that names can be listed without importing Jittor; a test compares it with the families' ENTRY_POINTS.
MODELS = {
    "eanet_resnet50": "eanet",
    "eanet_resnet101": "eanet",
    "eanet_resnet152": "eanet",
    "eanet_tiny": "eanet",
    "ea_pct_cls": "ea_point",
    "ea_pct_cls_simple": "ea_point",
    "ea_pct_partseg": "ea_point",
    "ea_pct_tiny_cls": "ea_point",
    "ea_pct_tiny_partseg": "ea_point",
    "eamlp_7": "eamlp",
    "eamlp_10": "eamlp",
    "eamlp_12": "eamlp",
    "eamlp_14": "eamlp",
    "eamlp_19": "eamlp",
    "eamlp_24": "eamlp",
    "eamlp_t_14": "eamlp",
    "eamlp_t_19": "eamlp",
    "eamlp_t_24": "eamlp",
    "eamlp_14_resnext": "eamlp",
    "eamlp_14_wide": "eamlp",
    "eamlp_14_se": "eamlp",
    "eamlp_dense": "eamlp",
    "eamlp_16_ghost": "eamlp",
    "eamlp_tiny": "eamlp",
    "t2t_vit_7": "eamlp",
    "t2t_vit_10": "eamlp",
    "t2t_vit_12": "eamlp",
    "t2t_vit_14": "eamlp",
    "t2t_vit_19": "eamlp",
    "t2t_vit_24": "eamlp",
    "t2t_vit_14_resnext": "eamlp",
    "t2t_vit_14_wide": "eamlp",
    "t2t_vit_t_14": "eamlp",
    "t2t_vit_t_19": "eamlp",
    "t2t_vit_t_24": "eamlp",
    "ea_sagan_cifar10": "eagan",
    "ea_sagan_tiny_imagenet": "eagan",
    "ea_sagan_tiny": "eagan",
    "inception_fid": "inception",
    "eanet_jseg_resnet50": "eanet_jseg",
    "eanet_jseg_resnet101": "eanet_jseg",
    "ea_fasterrcnn_resnet50_fpn": "detection",
    "ea_fasterrcnn_resnet101_fpn": "detection",
    "ea_fasterrcnn_tiny": "detection",
    "ea_maskrcnn_resnet50_fpn": "detection",
    "ea_maskrcnn_resnet101_fpn": "detection",
    "ea_maskrcnn_tiny": "detection",
    "ea_cascade_rcnn_resnet50_fpn": "detection",
    "ea_cascade_rcnn_resnet101_fpn": "detection",
    "ea_cascade_rcnn_tiny": "detection",
    "ea_cascade_maskrcnn_resnet50_fpn": "detection",
    "ea_cascade_maskrcnn_resnet101_fpn": "detection",
    "ea_cascade_maskrcnn_tiny": "detection",
    "ea_retinanet_resnet50_fpn": "detection",
    "ea_retinanet_resnet101_fpn": "detection",
    "ea_retinanet_tiny": "detection",
}


def list_models(pattern: str = "*") -> list:
    """Model names that match a shell pattern, sorted: list_models("eanet*")."""
    return sorted(fnmatch.filter(MODELS, pattern), key=lambda name: (MODELS[name], len(name), name))


def models_for(task: str) -> list:
    """Names of the models that solve a task, such as "segmentation"; imports all families."""
    classes = {name: _entry(name)[0] for name in list_models()}
    return [name for name, cls in classes.items() if getattr(cls, "func", cls).solves == task]  # some are partials


def create_model(name: str, **kwargs):
    """A new model with the family's initialisation, in training mode.

    Args:
        name: one of list_models(), or "module:Class" for a model of your own.
        kwargs: keywords of the family's class, e.g. num_classes=21, output_stride=8 for "eanet_*".
    Raises:
        ValueError: unknown name or keyword, with the nearest valid one; a value of the wrong kind or out of range.
    """
    cls, fixed = _entry(name)
    allowed = model_arguments(name)
    for key in kwargs if allowed is not None else ():
        if key not in allowed:
            raise ConfigError(f"{name}: unknown argument {shortened(key)}; it takes {', '.join(allowed)}"
                              f"{nearest(key, allowed)}")
        kwargs[key] = _of_kind(name, key, kwargs[key], allowed[key].annotation)
    model = cls(**fixed, **kwargs)
    model.train()
    return model


_KINDS = {"bool": (bool, bool, "True or False"), "int": (int, numbers.Integral, "an integer"),
          "float": (float, numbers.Real, "a number"), "str": (str, str, "text")}


def _of_kind(name: str, key: str, value, wanted):
    """The value as Python's own type, since Jittor's shapes take no numbers of numpy's."""
    if wanted not in _KINDS:
        return value
    own, kind, words = _KINDS[wanted]
    if not isinstance(value, kind) or isinstance(value, bool) != (own is bool):
        raise ConfigError(f"{name}: {key} is {quoted(value)}; expected {words}")
    return own(value)


def model_arguments(name: str) -> dict:
    """The keywords that a model takes: name -> inspect.Parameter, its annotation as text. Read from the source: Jittor
    is not imported. None where a class of your own does not tell (it has **keywords)."""
    if ":" in name:
        return own_arguments(name)
    if name not in MODELS:
        raise ConfigError(f"unknown model {quoted(name)}; there are {', '.join(list_models())}{nearest(name, MODELS)}")
    return entry_arguments(MODELS[name], name)


def infer_kwargs(name: str, tensors: dict) -> dict:
    """The arguments of create_model(name) that a checkpoint's tensors tell, such as num_classes."""
    allowed = model_arguments(name)
    if ":" in name:
        return {}
    return {key: value for key, value in _family(name).infer_kwargs(tensors).items() if key in allowed}


def _family(name: str):
    return importlib.import_module(f"jea.models.{MODELS[name]}")


def _entry(name: str):
    if ":" in name:
        return find_class(name, "model.name"), {}
    if name not in MODELS:
        raise ConfigError(f"unknown model {quoted(name)}; there are {', '.join(list_models())}{nearest(name, MODELS)}")
    return _family(name).ENTRY_POINTS[name]
