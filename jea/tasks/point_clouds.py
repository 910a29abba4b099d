"""What the two point-cloud tasks share: data, optimizers, votes, and the user's own clouds."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.data import DataError, dataset_class, map_ordered, write_image
from jea.data.files.inputs import CLOUDS, Input
from jea.data.loader import batched
from jea.data.views.clouds import choose, normalise_cloud, scaled
from jea.draw.attention import OnCloud
from jea.nn.fold import fuse
from jea.nn.mode import evaluating
from jea.ops import cross_entropy
from jea.progress import progress as progress_bar
from jea.results import Result
from jea.tasks.labels import absent_in_evaluation
from jea.tasks.task import Evaluation, Shown, Task
from jea.training.optimizers import SGD, AdamOfJittor
from jea.training.phase import Phase
from jea.training.schedules import cosine

MULTI_SCALE = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)  # PCT's votes for part segmentation
VOTE_SCALE = (2 / 3, 3 / 2)  # of the random votes: each axis, as in training
MIN_POINTS = 32  # of a user's own cloud


class PointTask(Task):
    """Base of the tasks on point clouds. A subclass defines `name`, the options, `gives`, `losses`, `probabilities` and
    what `evaluate` and `predict` call."""

    takes = CLOUDS

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate the fused form of the model from now on (jea.nn.fold); the task no longer trains."""
        self.model, self.modules = fuse(self.model, precision), {}

    def multi_scale(self) -> None:
        """Evaluate with PCT's votes from now on."""
        self.eval.scales = MULTI_SCALE

    # -- training ---------------------------------------------------------------------------------------------------

    def phases(self, total_steps: int) -> list:
        o = self.options
        parameters = [var for name, var in self.model.state_dict().items()
                      if not name.endswith(("running_mean", "running_var"))]
        if o.optimizer == "adam":
            optimizer = AdamOfJittor(parameters, lr=o.lr, weight_decay=o.weight_decay)
        else:
            optimizer = SGD(parameters, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
        return [Phase(name=self.name, optimizer=optimizer, losses=self.losses,
                      schedule=lambda step: cosine(step, total_steps, floor=o.lr_floor / o.lr))]

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def votes(self, points: np.ndarray, seeds: Sequence[int], run) -> np.ndarray:
        """The mean of run(points) over the votes.

        points: (B, 3, N) float32. seeds: (B,) numbers that tell the clouds apart: a cloud's random votes do not depend
        on the batch that it is in. run: (B, 3, N) float32 array -> probabilities.
        """
        total = None
        for vote in range(self.eval.votes):
            stretched = points
            if vote:
                stretched = np.stack([scaled(cloud.T, _generator(seed, vote), *VOTE_SCALE).T
                                      for cloud, seed in zip(points, seeds)])
            for scale in self.eval.scales:
                found = run(np.ascontiguousarray(stretched * np.float32(scale), np.float32))
                total = found if total is None else total + found
        return total / (self.eval.votes * len(self.eval.scales))

    def run(self, *inputs: np.ndarray) -> np.ndarray:
        """Probabilities (softmax over axis 1, float64) of the model for arrays, in evaluation mode."""
        with evaluating(self.model):
            logits = self.model(*(jt.array(x) for x in inputs)).numpy().astype(np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Run over a split and score it. Writes the first `eval.pictures` pictures to out/pictures."""
        dataset = self.dataset(split or self.eval.split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        scores, labels, seconds, done, shown = self.new_scores(dataset), self.labels(dataset), 0.0, 0, []
        labelled = np.zeros(len(labels.names), np.int64)
        samples = map_ordered(dataset.test_sample, range(count), self.eval.num_workers)
        bar = progress_bar(samples, total=count, title=dataset.split, unit="cloud", shown=progress)
        for batch in batched(bar, self.eval.batch_size):
            started = time.perf_counter()
            points = np.stack([sample["points"] for sample in batch])
            categories = np.array([sample["category"] for sample in batch])
            labelled += sum(self.count_labels(sample, len(labelled)) for sample in batch)
            found = self.probabilities(points, categories, range(done, done + len(batch)))
            seconds += time.perf_counter() - started
            for k, sample in enumerate(batch):
                drawn = done + k < self.eval.pictures
                picture, measure, value = self.score(scores, sample, found[k], dataset, drawn=drawn)
                if drawn:
                    path = Path(out) / "pictures" / f"{sample['id']}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_image(path, picture)
                    shown.append(Shown(path, f"{sample['id']}: {measure} {value:.2f}; prediction, label, errors",
                                       value, self.draw_attention(Path(out) / "attention" / path.name,
                                                                  sample["points"].T, sample["category"])))
            done += len(batch)
        values = self.result(scores, dataset)
        values.update(absent_in_evaluation(labels, labelled, stop=limit is None))
        return Evaluation(next(iter(values.values())), dict(values, clouds=count,
                                                            seconds_per_cloud=seconds / max(count, 1)), shown)

    def count_labels(self, sample: dict, count: int) -> np.ndarray:
        """How many labels of a test sample are of each of the `count` classes, or parts."""
        return np.bincount([sample["category"]], minlength=count)

    def attention_view(self, cloud: np.ndarray, category: int | None = None) -> tuple:
        """category: of a cloud (N, 3) as the network takes it; None: one of a user's own, of which some points are
        looked at."""
        if category is None:
            cloud = normalise_cloud(cloud)
            cloud = cloud[choose(len(cloud), self.num_points, np.random.Generator(np.random.PCG64(0)))]
        points = np.ascontiguousarray(cloud.T)[None]
        return self.model, self.network_inputs(points, category), {"": OnCloud(cloud)}

    def network_inputs(self, points: np.ndarray, category: int | None) -> tuple:
        """What the network takes of one cloud (1, 3, N); category None: it is to be guessed."""
        return (points,)

    def predict(self, inputs: Sequence[Input]) -> list[Result]:
        """Run on clouds. They are moved into the unit sphere, nothing else: their axes must be those of the training
        data."""
        for one in inputs:
            if len(one.value) < MIN_POINTS:
                raise DataError(f"{one.name}: cloud has {len(one.value)} points; expected at least {MIN_POINTS}, and "
                                f"best {self.num_points} or more")
            if not np.ptp(one.value, axis=0).any():
                raise DataError(f"{one.name}: all {len(one.value)} points are the same")
        return self.predict_clouds(inputs, [normalise_cloud(one.value) for one in inputs])

    def predict_clouds(self, inputs: Sequence[Input], clouds: list[np.ndarray]) -> list[Result]:
        """The results for clouds (N, 3) float32 in the unit sphere."""
        raise NotImplementedError

    @property
    def num_points(self) -> int:
        """Points of the clouds that the config trains with."""
        return self._data.get("num_points", self.defaults("data")["num_points"])

    def names(self, what: str, count: int) -> tuple:
        """The data set's class_names or part_names without touching the data; numbers where they do not fit."""
        known = getattr(dataset_class(self._data["name"]), what)
        return tuple(known) if len(known) == count else tuple(f"{what.partition('_')[0]} {k}" for k in range(count))


def smoothed_cross_entropy(logits, labels, smoothing: float):
    """DGCNN's loss: the label has 1 - smoothing of the target, each *other* class an equal share of the rest.

    jea.ops.cross_entropy spreads its e over all C classes, so e = smoothing * C / (C - 1).

    Args:
        logits: (B, C) or (B, C, N) float32. labels: (B,) or (B, N) int32.
    Returns:
        The mean over all positions, scalar float32; the sum runs in float64.
    """
    classes = logits.shape[1]
    losses = cross_entropy(logits, labels, label_smoothing=smoothing * classes / max(classes - 1, 1))
    return (losses.float64().sum() / losses.numel()).float32()


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seeds))
