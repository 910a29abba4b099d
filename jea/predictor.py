"""From a picture, a cloud or a number of samples to a result: what `jea test --input` does, in Python."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np

from jea import config as configs
from jea import environment
from jea.data.loader import batched
from jea.errors import CheckpointError, ConfigError, nearest
from jea.files import find_config, weights_for
from jea.progress import progress as progress_bar
from jea.results import Result

PRECISIONS = ("float32", "bfloat16", "float16")


class Predictor:
    """A config's network with its weights, ready to be called.

        predictor = jea.Predictor("segmentation_eanet_resnet101_voc", weights="eanet.pth")
        result = predictor("photo.jpg")
        result.save("found.png")

    Pictures are read, prepared and judged exactly as by `jea test --input`; a result (jea.results) has what was found
    as arrays and names, `save`, and a picture of itself for notebooks.

    Args:
        config: name of a config, path of a YAML file, or what jea.config.load gave.
        weights: a checkpoint; default: the bundled one, where the config is a demo.
        overrides: "block.key=value" texts that change the config, as on the command line.
        device: "auto", "cpu" or "cuda".
        precision: "float32"; or "bfloat16", on CUDA also "float16", of activations and products.
        fuse: fold BatchNorm into the layers before it. False runs the network as it was trained.
        multi_scale: look at pictures and clouds in several sizes, as for published results.
        ema: of weights that have averaged ones too, load these. strict: refuse weights that do not fit whole.
        batch_size: how many of a list run together, at most.
    Attributes:
        names: of the classes. task: the jea.tasks.task.Task. loaded: what was loaded, in words.
    Raises:
        UserError: a one-line message about what was given; it says what was expected.
    """

    def __init__(self, config: str | os.PathLike | dict, weights: str | os.PathLike | None = None, *,
                 overrides: Sequence[str] = (), device: str = "auto", precision: str = "float32", fuse: bool = True,
                 multi_scale: bool = False, ema: bool = True, strict: bool = True, batch_size: int = 8):
        for word, value, allowed in (("device", device, ("auto", "cpu", "cuda")), ("precision", precision, PRECISIONS)):
            if value not in allowed:
                raise ConfigError(f"{word} is {value!r}; expected {', '.join(allowed)}{nearest(value, allowed)}")
        if not fuse and precision != "float32":
            raise ConfigError(f"precision {precision} is the fused network's: leave fuse=False out")
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; expected an integer of at least 1")
        self._device = environment.choose_device(device, "device ")
        checked, name = _config(config, overrides)
        if weights is None:
            weights = weights_for(name, needed="weights=FILE")
        elif not os.path.exists(weights):
            raise CheckpointError(weights, "no such file; check the path")
        from jea._jittor import jt
        from jea.tasks import create_task
        self._jittor, self._batch_size, self._config = jt, batch_size, name
        with self._scope():
            self.task = create_task(checked, draw=False)
            if multi_scale:
                self.task.multi_scale()
            self.task.prepare_prediction()
            self.loaded = self.task.load(weights, ema=ema, strict=strict)
            if fuse:
                self.task.fuse(precision)
        self.weights, self.precision = str(weights), precision

    @property
    def names(self) -> tuple[str, ...]:
        return self.task.class_names()

    def __call__(self, inputs: Any = None, *, count: int | None = None, seed: int = 0, labels=None,
                 progress: bool = False) -> Result | list[Result]:
        """What is found in the input; of several, a list in their order.

        Args:
            inputs: for pictures the path of a file, a PIL picture or an array (H, W, 3) uint8 RGB; for clouds the path
                of a file or an array (N, 3); a list, tuple or iterator of them, an array of one more dimension, or the
                path of a folder: several.
            count, seed, labels: of generation: how many pictures; where their noise starts; their classes, numbers or
                names, default in turn.
            progress: show a bar over several inputs.
        """
        if self.task.takes is None:
            return self._generate(inputs, count, seed, labels)
        if count is not None or labels is not None or seed:
            raise ConfigError(f"count, seed and labels are for generation; {self.task.name} takes a "
                              f"{self.task.takes.unit}")
        if inputs is None:
            raise ConfigError(f"{self.task.name} takes a {self.task.takes.unit}: its path, an array, or a list of them")
        if isinstance(inputs, (str, os.PathLike)) and os.path.isdir(os.path.expanduser(inputs)):
            inputs = self.task.list_inputs(inputs)
        elif not self._are_several(inputs):
            return next(self.stream([inputs], name="array"))
        bar = progress_bar(self.stream(inputs), total=len(inputs) if hasattr(inputs, "__len__") else None,
                           unit=self.task.takes.unit, shown=progress)
        return list(bar)

    def stream(self, inputs: Iterable, *, name: str = "") -> Iterable[Result]:
        """The result of each of many inputs, of which no more than `batch_size` are in memory at one time."""
        if self.task.takes is None:
            raise self.task.cannot("take inputs", "call it with count=16")
        taken = (self.task.takes.input(value, name or f"array {number}") for number, value in enumerate(inputs))
        for batch in batched(taken, self._batch_size):
            yield from self._predict(batch)

    def _predict(self, batch: list) -> list[Result]:
        with self._scope():
            return self.task.predict(batch)

    def _generate(self, inputs, count, seed, labels) -> Result:
        if inputs is not None and count is not None:
            raise ConfigError(f"{self.task.name} takes count or a single number; it got {inputs!r} and count={count!r}")
        with self._scope():
            return self.task.generate(inputs if count is None else count, seed=seed, labels=labels)

    def _are_several(self, inputs) -> bool:
        if isinstance(inputs, np.ndarray):
            return inputs.ndim == self.task.takes.ndim + 1
        return isinstance(inputs, (list, tuple)) or hasattr(inputs, "__next__")

    def _scope(self):
        return self._jittor.flag_scope(use_cuda=int(self._device == "cuda"))

    def __repr__(self) -> str:
        return f"Predictor({self._config}, weights {self.weights}, {self._device}, {self.precision})"


def _config(config, overrides) -> tuple[dict, str]:
    """(checked blocks, name) of a config in any form."""
    if isinstance(config, (str, os.PathLike)):
        path = find_config(os.path.expanduser(config))
        return configs.load(path, overrides), Path(path).stem
    if not isinstance(config, dict):
        raise ConfigError(f"config is a {type(config).__name__}; expected a name, a path, or what jea.config.load gave")
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    problems = configs.apply(config, overrides) + configs.check(config)
    if problems:
        raise ConfigError("; ".join(f"config: {problem}" for problem in problems))
    return {"train": {}, "eval": {}, **config}, "this config"
