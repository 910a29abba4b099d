"""The result of generation: pictures, and the classes that they were to show."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from jea.data.files.inputs import Input
from jea.data.files.pictures import write_image
from jea.draw.sheets import sheet
from jea.results.result import Result

_COLUMNS, _SIDE, _SHOWN = 10, 64, 200  # of a sheet: pictures in a row, their least side in pixels, pictures at most


class Samples(Result):
    """Generated pictures. `save` to .npz writes `images` and `labels`; to a folder each picture by itself.

    images: (N, S, S, 3) uint8. labels: (N,) the classes, or (N, num_classes) mixtures of them. names: of the classes.
    """

    suffixes = ()
    writers = {".npz": "_npz"}

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, names: Sequence[str], seed: int):
        super().__init__(Input(images, "samples"))
        self.images, self.labels, self.names, self.seed = images, labels, tuple(names), seed

    def __len__(self) -> int:
        return len(self.images)

    def picture(self) -> np.ndarray:
        """The first 200 pictures on a sheet, ten in a row; small ones enlarged."""
        shown = self.images[:_SHOWN]
        return sheet(shown, min(_COLUMNS, len(shown)), zoom=max(1, _SIDE // shown.shape[1]))

    def entry(self) -> dict:
        return {"samples": len(self), "seed": self.seed, "labels": self.labels.tolist()}

    def write_files(self, path: Callable[[str], Path]) -> dict:
        folder = path(".json").parent
        for number, picture in enumerate(self.images):
            write_image(folder / self.file_name(number), picture)
        return self.entry()

    def file_name(self, number: int) -> str:
        """Of a picture: its number, and its class unless it is a mixture."""
        return f"{number:06d}" + ("" if self.labels.ndim > 1 else f"_class{self.labels[number]:03d}") + ".png"

    def words(self) -> str:
        side, one = self.images.shape[1], len(self) == 1
        said = f"{len(self)} picture{'s' * (not one)} of {side} x {side}, seed {self.seed}"
        if self.labels.ndim > 1:
            return f"{said}, mixtures"
        present, counts = np.unique(self.labels, return_counts=True)
        return f"{said}: " + ", ".join(f"{n} {self.names[c]}" for c, n in zip(present.tolist(), counts.tolist()))

    def _npz(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, images=self.images, labels=self.labels)
        return buffer.getvalue()
