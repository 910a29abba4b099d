"""The ways of a model through the activation formats (jea.nn.formats), as text: `jea info --formats CONFIG`."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt
from jea.errors import ConfigError, UserError
from jea.nn import formats, precision
from jea.nn.fold import Fused, fuse


def describe(model) -> str:
    """Training, inference and inference in bfloat16 of a model: where it enters a format, converts and leaves, and why.

    Nothing is trained or changed; a fused copy is made for a moment.
    """
    inputs, lines = example_inputs(model), []
    model.train()
    for title, dtype, run in (("training", "float32", _training), ("inference", "float32", _inference),
                              ("inference, bfloat16", "bfloat16", _inference)):
        lines.append(f"{title}:")
        try:
            lines += [f"  {line}" for line in summary(run(model, dtype, inputs))]
        except UserError as error:
            lines.append(f"  not possible: {error}")
    return "\n".join(lines)


def _training(model, dtype, inputs) -> list:
    with precision.autocast(dtype):
        return formats.way(model, *inputs)


def _inference(model, dtype, inputs) -> list:
    fused = fuse(model, dtype)
    network = fused.network if isinstance(fused, Fused) else fused
    with formats.inference(dtype):
        return formats.way(network, *inputs)


def summary(steps: list) -> list:
    """Steps of jea.nn.formats.way as lines: neighbours of one kind in one format together."""
    lines, group = [], []

    def end():
        if group:
            first, last = group[0][0] or "the end", group[-1][0] or "the end"
            count = {}
            for _, kind, *_ in group:
                count[kind] = count.get(kind, 0) + 1
            what = ", ".join(f"{number} {kind}" for kind, number in count.items())
            lines.append(f"{group[0][2]:18}{what}  ({first if first == last else f'{first} to {last}'})")
            group.clear()
    for step in steps:
        layer, kind, what, shape = step
        if kind in ("enter", "convert"):
            end()
            words = {"enter": "enters", "convert": "converts"}[kind]
            lines.append(f"{words} {what}, {'x'.join(map(str, shape))}" + (f"  (at {layer})" if layer else ""))
            continue
        if group and group[0][2] != what:
            end()
        group.append(step)
    end()
    return lines or ["no pictures between its layers: matrices of tokens or points, in one layout"]


def example_inputs(model) -> tuple:
    """Inputs as small as tell the way of a model."""
    if model.solves == "segmentation":
        return (jt.zeros((2, 3, 65, 65)),)
    if model.solves == "classification":
        return (jt.zeros((2, 3, model.img_size, model.img_size)),)
    if model.solves == "generation":
        return jt.zeros((2, model.z_dim)), np.zeros(2, np.int32)
    if model.solves in ("point_classification", "part_segmentation"):
        points = jt.array(np.random.default_rng(0).standard_normal((2, 3, 1024)).astype(np.float32))
        if model.solves == "point_classification":
            return (points,)
        return points, jt.array(np.eye(model.num_categories, dtype=np.float32)[[0, 0]])
    raise ConfigError(f"{type(model).__name__} solves {model.solves or 'nothing that it names'!r}: its way through the "
                      "formats can be shown of networks for segmentation, classification, points and generation")
