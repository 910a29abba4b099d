"""A task and a model as small as they can be: a line through the points of toy_points.py."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jea._jittor import jt, nn
from jea.models.network import Network
from jea.tasks.options.training import TrainOptions
from jea.tasks.task import Evaluation, Task
from jea.training.phase import Phase


class Line(Network):
    """slope x + intercept, which start at random."""

    solves, num_classes = "line", 0

    def __init__(self, *, spread: float = 1.0):
        self.slope, self.intercept = spread * jt.randn(1), jt.zeros(1)

    def execute(self, x):
        return self.slope * x + self.intercept


class Fit(Task):
    """Least squares; a user's own file is a JSON list of x."""

    name = "line"

    @dataclass
    class Train(TrainOptions):
        lr: float = 0.1

    def phases(self, total_steps):
        def losses(batch):
            return {"loss": ((self.model(jt.array(batch["x"])) - jt.array(batch["y"])) ** 2).mean()}
        return [Phase(name="line", optimizer=nn.SGD(list(self.model.parameters()), lr=self.options.lr, momentum=0.5),
                      losses=losses)]

    def evaluate(self, out, *, split=None, limit=None, progress=True):
        data = self.dataset(self.eval.split if split is None else split)
        error = float(np.abs(self.model(jt.array(data.x)).numpy() - (2 * data.x + 1)).max())
        return Evaluation(-error, {"error": error, "points": len(data)})

    def list_inputs(self, path):
        path = Path(path)
        return sorted(path.glob("*.json")) if path.is_dir() else [path]

    def predict_files(self, inputs, outputs, *, progress=True):
        for item in outputs.each((".txt",), unit="list", progress=progress):
            with item:
                y = self.model(jt.array(np.array(json.loads(item.input.read_text()), np.float32))).numpy()
                item.path(".txt").write_text(" ".join(f"{v:.4f}" for v in y))
                item.found(prediction=str(item.path(".txt")))
        return outputs.result("lists")


def make(*, data=None, model=None, eval=None, **train):
    """A Fit of six points a batch, two batches an epoch."""
    options = {"steps": 8, "batch_size": 6, "num_workers": 0, "log_every": 1, "eval_every": 0, "save_every": 4, **train}
    return Fit(model={"name": "toy:Line", **(model or {})}, data={"name": "toy_points:Points", **(data or {})},
               train=options, eval=eval)
