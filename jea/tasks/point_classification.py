"""Classification of point clouds: training and evaluation as PCT's on ModelNet40."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.data import DataError
from jea.data.files.inputs import Input
from jea.data.views.clouds import choose
from jea.metrics import ClassificationScores
from jea.results.clouds import CloudClass, class_sheet
from jea.tasks.options import point_classification as options
from jea.tasks.point_clouds import PointTask, smoothed_cross_entropy


class PointClassification(PointTask):
    """A class for each cloud. Arguments as PointTask.

    `evaluate` gives {"OA": overall accuracy, "mAcc": mean over the classes of their accuracy, "accuracy": {class: ...},
    "clouds", "seconds_per_cloud"}.
    """

    name = "point_classification"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS
    gives = CloudClass

    def check_sizes(self, dataset) -> None:
        super().check_sizes(dataset)
        needed = max(getattr(self.model, "samples", ()), default=1)
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
        picture = class_sheet(sample["points"].T, found, dataset.class_names, sample["category"]) if drawn else None
        return picture, "probability of the label", float(found[sample["category"]])

    def result(self, scores: ClassificationScores, dataset) -> dict:
        found = scores.scores()
        return {"OA": found["top1"], "mAcc": found["mean_class"],
                "accuracy": dict(zip(dataset.class_names, found["accuracy"].tolist()))}

    def predict_clouds(self, inputs: Sequence[Input], clouds: list[np.ndarray]) -> list[CloudClass]:
        chosen = [points[choose(len(points), self.num_points, np.random.Generator(np.random.PCG64(0)))].T
                  for points in clouds]
        names = self.names("class_names", self.model.num_classes)
        return [CloudClass(one, found, names=names)
                for one, found in zip(inputs, self.probabilities(np.stack(chosen), None, [0] * len(chosen)))]
