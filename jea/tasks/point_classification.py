"""Classification of point clouds: training and evaluation as PCT's on ModelNet40."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.data import DataError
from jea.data.views.clouds import choose
from jea.draw.clouds import cloud_sheet
from jea.metrics import ClassificationScores
from jea.tasks.options import point_classification as options
from jea.tasks.point_clouds import PointTask, smoothed_cross_entropy


class PointClassification(PointTask):
    """A class for each cloud. Arguments as PointTask.

    `evaluate` gives {"OA": overall accuracy, "mAcc": mean over the classes of their accuracy, "accuracy": {class: ...},
    "clouds", "seconds_per_cloud"}.
    """

    name = "point_classification"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS

    def check_sizes(self, dataset) -> None:
        super().check_sizes(dataset)
        needed = max(getattr(self.model, "samples", (1,)))
        if dataset.num_points < needed:
            raise DataError(f"{dataset.root}: clouds of {dataset.num_points} points; the model samples {needed}: set "
                            f"data.num_points to {needed} or more")

    def losses(self, batch: dict) -> dict:
        logits = self.model(jt.array(batch["points"]))
        return {"loss": smoothed_cross_entropy(logits, jt.array(batch["category"]), self.options.label_smoothing)}

    def probabilities(self, points: np.ndarray, categories, seeds: Sequence[int]) -> np.ndarray:
        """(B, 3, N) float32 clouds -> (B, num_classes) float64, the mean over the votes; `categories` is not used."""
        return self.votes(points, seeds, self.run)

    def new_scores(self, dataset) -> ClassificationScores:
        return ClassificationScores(dataset.num_classes, topk=(1,))

    def score(self, scores: ClassificationScores, sample: dict, found: np.ndarray, dataset, *, drawn: bool):
        scores.update(found[None], np.array([sample["category"]]))
        picture = _sheet(sample["points"].T, found, dataset.class_names, sample["category"]) if drawn else None
        return picture, "probability of the label", float(found[sample["category"]])

    def result(self, scores: ClassificationScores, dataset) -> dict:
        found = scores.scores()
        return {"OA": found["top1"], "mAcc": found["mean_class"],
                "accuracy": dict(zip(dataset.class_names, found["accuracy"].tolist()))}

    def predict_cloud(self, cloud: np.ndarray, points: np.ndarray, item):
        """The picture of a user's cloud and the probabilities of its best five classes."""
        chosen = choose(len(points), self.num_points, np.random.Generator(np.random.PCG64(0)))
        found = self.probabilities(np.ascontiguousarray(points[chosen].T)[None], None, [0])[0]
        names = self.names("class_names", self.model.num_classes)
        best = np.argsort(-found, kind="stable")[:5]
        return _sheet(points, found, names), {names[k]: round(float(found[k]), 4) for k in best}, None


def _sheet(points: np.ndarray, found: np.ndarray, names: Sequence[str], label=None) -> np.ndarray:
    best = int(found.argmax())
    titles = [f"{names[best]} {found[best]:.0%}", *([] if label is None else [f"label: {names[label]}", "errors"])]
    whole = None if label is None else np.full(len(points), label)
    return cloud_sheet(points, np.full(len(points), best), whole, names=names, titles=titles)
