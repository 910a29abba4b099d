"""Results of the tasks on point clouds: a class for the cloud, a part for each point."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from jea.data.files.inputs import Input
from jea.data.files.pictures import write_image
from jea.data.views.clouds import normalise_cloud
from jea.draw.clouds import cloud_sheet
from jea.files import write_bytes
from jea.results.result import Result, shares_text


class CloudClass(Result):
    """The classes that a cloud may be of. points: (N, 3) float64, the user's. probabilities: (num_classes,) float64.
    top: the five most likely classes, {name: probability}. label: the most likely one's name."""

    def __init__(self, input: Input, probabilities: np.ndarray, *, names: Sequence[str]):
        super().__init__(input)
        self.points, self.probabilities, self.names = input.value, probabilities, tuple(names)
        best = np.argsort(-probabilities, kind="stable")[:5]
        self.top = {self.names[k]: float(probabilities[k]) for k in best}
        self.label = next(iter(self.top))

    def picture(self) -> np.ndarray:
        return class_sheet(normalise_cloud(self.points), self.probabilities, self.names)

    def entry(self) -> dict:
        return {"classes": {name: round(share, 4) for name, share in self.top.items()}}

    def words(self) -> str:
        return f"{len(self.points)} points, {shares_text(self.top)}"


class CloudParts(Result):
    """A part for each point. `save` to .txt writes "x y z part" for each point.

    points: (N, 3) float64, the user's. parts: (N,) indices in `names`. category: what the network was told that the
    cloud shows. shares: {name: share of the points} of the parts that are there.
    """

    suffixes = (".png", "_parts.txt")
    writers = {".txt": "_text"}

    def __init__(self, input: Input, parts: np.ndarray, *, names: Sequence[str], category: str):
        super().__init__(input)
        self.points, self.parts, self.names, self.category = input.value, parts, tuple(names), category
        present, sizes = np.unique(parts, return_counts=True)
        self.shares = {self.names[k]: size / len(parts) for k, size in zip(present.tolist(), sizes.tolist())}

    def picture(self) -> np.ndarray:
        return cloud_sheet(normalise_cloud(self.points), self.parts, names=self.names, titles=(self.category,))

    def entry(self) -> dict:
        return {"classes": {name: round(share, 4) for name, share in self.shares.items()}}

    def write_files(self, path: Callable[[str], Path]) -> dict:
        write_bytes(path("_parts.txt"), self._text())
        write_image(path(".png"), self.picture())
        return {"prediction": str(path("_parts.txt")), **self.entry()}

    def words(self) -> str:
        return f"{len(self.points)} points, {self.category}: {shares_text(self.shares)}"

    def _text(self) -> bytes:
        return "".join(f"{x:.9g} {y:.9g} {z:.9g} {part}\n" for (x, y, z), part in
                       zip(self.points.tolist(), self.parts.tolist())).encode()


def class_sheet(points: np.ndarray, found: np.ndarray, names: Sequence[str], label=None) -> np.ndarray:
    """A cloud (N, 3) in the colour of its most likely class, and, where there is a label, that beside it; (h, w, 3)
    uint8. found: (num_classes,) probabilities."""
    best = int(found.argmax())
    titles = [f"{names[best]} {found[best]:.0%}", *([] if label is None else [f"label: {names[label]}", "errors"])]
    whole = None if label is None else np.full(len(points), label)
    return cloud_sheet(points, np.full(len(points), best), whole, names=names, titles=titles)
