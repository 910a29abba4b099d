"""Part segmentation of point clouds: training and evaluation as PCT's on ShapeNetPart."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from jea._jittor import jt
from jea.data import DataError, dataset_class
from jea.data.files.inputs import Input
from jea.data.views.clouds import choose
from jea.draw.clouds import cloud_sheet
from jea.errors import quoted
from jea.metrics import PartScores
from jea.results import CloudParts
from jea.tasks.labels import PartLabels
from jea.tasks.options import part_segmentation as options
from jea.tasks.point_clouds import PointTask, smoothed_cross_entropy


class PartSegmentation(PointTask):
    """A part for each point; the network is told the shape's category. Arguments as PointTask.

    `evaluate` gives {"instance_mIoU", "category_mIoU", "accuracy": share of right points, "mIoU": {category: ...},
    "clouds", "seconds_per_cloud"}; see PartScores.
    """

    name = "part_segmentation"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS
    gives = CloudParts

    def check_sizes(self, dataset) -> None:
        if dataset.parts is None:
            raise DataError(f"{dataset.root}: has no parts; part_segmentation needs a data set with some")
        needed = dataset.num_classes, len(dataset.part_names)
        if needed != (self.model.num_categories, self.model.num_classes):
            raise DataError(f"{dataset.root}: has {needed[0]} categories and {needed[1]} parts, the model "
                            f"{self.model.num_categories} and {self.model.num_classes}; set model.num_categories and "
                            "model.num_classes")

    def labels(self, dataset) -> PartLabels:
        return PartLabels(dataset)

    def count_labels(self, sample: dict, count: int) -> np.ndarray:
        return np.bincount(sample["parts"], minlength=count)

    def one_hot(self, categories: np.ndarray) -> np.ndarray:
        """(B,) categories -> (B, num_categories) float32."""
        return np.eye(self.model.num_categories, dtype=np.float32)[categories]

    def losses(self, batch: dict) -> dict:
        logits = self.model(jt.array(batch["points"]), jt.array(self.one_hot(batch["category"])))
        return {"loss": smoothed_cross_entropy(logits, jt.array(batch["parts"]), self.options.label_smoothing)}

    def probabilities(self, points: np.ndarray, categories: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """(B, 3, N) float32 clouds of (B,) categories -> (B, num_classes, N) float64, the mean over the votes."""
        label = self.one_hot(categories)
        return self.votes(points, seeds, lambda x: self.run(x, label))

    def prediction(self, found: np.ndarray, category: int, parts) -> np.ndarray:
        """(num_classes, N) probabilities -> (N,) parts; parts: those of each category."""
        if not self.eval.within_category:
            return found.argmax(0)
        own = np.asarray(parts[category])
        return own[found[own].argmax(0)]

    def new_scores(self, dataset) -> PartScores:
        return PartScores(dataset.parts)

    def score(self, scores: PartScores, sample: dict, found: np.ndarray, dataset, *, drawn: bool):
        prediction = self.prediction(found, sample["category"], dataset.parts)
        iou = scores.update(prediction, sample["parts"], sample["category"])
        picture = cloud_sheet(sample["points"].T, prediction, sample["parts"], names=dataset.part_names, titles=(
            f"prediction, mIoU {iou:.2f}", "label", "errors")) if drawn else None
        return picture, "mIoU", iou

    def result(self, scores: PartScores, dataset) -> dict:
        found = scores.scores()
        return {**found, "mIoU": dict(zip(dataset.class_names, found["mIoU"].tolist()))}

    def prepare_prediction(self) -> None:
        self._categories()

    def predict_clouds(self, inputs: Sequence[Input], clouds: list[np.ndarray]) -> list[CloudParts]:
        """All points get a part: they run in random groups of the training's size."""
        parts = dataset_class(self._data["name"]).parts
        names, n = self.names("part_names", self.model.num_classes), self.num_points
        groups, categories, found = [], [], [np.zeros(len(points), np.int64) for points in clouds]
        for cloud, points in enumerate(clouds):
            count = len(points)
            order = choose(count, -(-count // n) * n, np.random.Generator(np.random.PCG64(0))).reshape(-1, n)
            categories.append(self._category(points[order[0]], parts))
            groups += [(cloud, seed, chosen) for seed, chosen in enumerate(order)]
        for start in range(0, len(groups), self.eval.batch_size):
            some = groups[start:start + self.eval.batch_size]
            batch = np.ascontiguousarray(np.stack([clouds[cloud][chosen].T for cloud, _, chosen in some]))
            shares = self.probabilities(batch, np.array([categories[cloud] for cloud, _, _ in some]),
                                        [seed for _, seed, _ in some])
            for (cloud, _, chosen), own in zip(some[::-1], shares[::-1]):
                # A repeated point keeps its first group's part.
                found[cloud][chosen[::-1]] = self.prediction(own, categories[cloud], parts)[::-1]
        titles = self.names("class_names", self.model.num_categories)
        return [CloudParts(one, prediction, names=names, category=titles[category])
                for one, prediction, category in zip(inputs, found, categories)]

    def network_inputs(self, points: np.ndarray, category: int | None) -> tuple:
        if category is None:
            category = self._category(points[0].T, dataset_class(self._data["name"]).parts)
        return points, self.one_hot(np.array([category]))

    def _categories(self) -> tuple:
        names = self.names("class_names", self.model.num_categories)
        if self.eval.category is not None and self.eval.category not in names:
            raise DataError(f"eval.category is {quoted(self.eval.category)}; there are {', '.join(names)}")
        return names

    def _category(self, points: np.ndarray, parts) -> int:
        """eval.category, or the category under which the network is surest that the points are the category's parts."""
        names = self._categories()
        if self.eval.category is not None:
            return names.index(self.eval.category)
        clouds = np.repeat(np.ascontiguousarray(points.T)[None], len(names), axis=0)
        found = self.run(clouds, self.one_hot(np.arange(len(names))))
        return int(np.argmax([found[k][list(parts[k])].max(0).mean() for k in range(len(names))]))
