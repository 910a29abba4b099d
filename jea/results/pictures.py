"""Results of the tasks on pictures: a class for each pixel, for the picture, and the objects in it."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from jea.data.files.inputs import Input
from jea.data.files.labels import write_index_png
from jea.data.files.pictures import write_image
from jea.draw.captions import captioned, ranked
from jea.draw.comparisons import overlay, resized_labels, shrunk, shrunk_size, side_by_side
from jea.draw.objects import beside_truth, drawn_objects, enlarged
from jea.errors import ConfigError, nearest
from jea.results.result import Result, shares_text


class PictureResult(Result):
    """Base of the results on pictures. image: the picture, (H, W, 3) uint8, upright. names: of the model's classes."""

    def __init__(self, input: Input, names: Sequence[str]):
        super().__init__(input)
        self.image, self.names = input.value, tuple(names)

    def overlay(self) -> np.ndarray:
        """What was found, drawn over the picture in its own size, (H, W, 3) uint8."""
        raise NotImplementedError

    def _size(self) -> str:
        return f"{self.image.shape[1]} x {self.image.shape[0]}"


class ClassMap(PictureResult):
    """A class for each pixel. `save` to .npy writes `classes`; to a folder also as a picture of indices.

    classes: (H, W) uint8. shares: {name: share of the pixels} of the classes that are there.
    """

    suffixes = (".png", "_overlay.png")
    writers = {".npy": "_npy"}

    def __init__(self, input: Input, classes: np.ndarray, *, names: Sequence[str], palette: np.ndarray,
                 background: int | None, largest: int):
        super().__init__(input, names)
        self.classes, self.palette, self.background, self._largest = classes, palette, background, largest
        present, pixels = np.unique(classes, return_counts=True)
        self.shares = {self.names[c]: n / classes.size for c, n in zip(present.tolist(), pixels.tolist())}

    def mask(self, name: str) -> np.ndarray:
        """Where a class is, (H, W) bool."""
        if name not in self.names:
            raise ConfigError(f"no class {name!r}; there are {', '.join(self.names)}{nearest(name, self.names)}")
        return self.classes == self.names.index(name)

    def overlay(self, alpha: float = 0.55) -> np.ndarray:
        """The classes' colours over the picture in its own size, (H, W, 3) uint8. alpha: their weight."""
        return overlay(self.image, self.classes, self.palette, alpha, background=self.background)

    def picture(self) -> np.ndarray:
        image = shrunk(self.image, self._largest)
        return side_by_side(image, resized_labels(self.classes, image.shape[:2]), palette=self.palette,
                            class_names=self.names, background=self.background)

    def entry(self) -> dict:
        return {"classes": {name: round(share, 4) for name, share in self.shares.items()}}

    def write_files(self, path: Callable[[str], Path]) -> dict:
        write_index_png(path(".png"), self.classes, self.palette)
        write_image(path("_overlay.png"), self.picture())
        return {"prediction": str(path(".png")), **self.entry()}

    def words(self) -> str:
        return f"{self._size()}, {shares_text(dict(sorted(self.shares.items(), key=lambda item: -item[1])))}"

    def _npy(self) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, self.classes)
        return buffer.getvalue()


class TopClasses(PictureResult):
    """The classes that a picture may be of. probabilities: (num_classes,) float64. top: the five most likely ones,
    {name: probability}. label: the most likely one's name."""

    suffixes = ()
    list_name = "predictions.json"

    def __init__(self, input: Input, probabilities: np.ndarray, *, names: Sequence[str]):
        super().__init__(input, names)
        self.probabilities = probabilities
        self.top = {self.names[c]: float(probabilities[c]) for c in np.argsort(-probabilities, kind="stable")[:5]}
        self.label = next(iter(self.top))

    def overlay(self) -> np.ndarray:
        return captioned(self.image, f"{self.label} {self.top[self.label]:.0%}")

    def picture(self) -> np.ndarray:
        return ranked(self.image, self.top)

    def entry(self) -> dict:
        return {"classes": {name: round(share, 4) for name, share in self.top.items()}}

    def write_files(self, path: Callable[[str], Path]) -> dict:
        return self.entry()

    def words(self) -> str:
        return shares_text(self.top)


class Objects(PictureResult):
    """The objects in a picture whose score is at least the config's eval.min_score, best first.

    boxes: (K, 4) float32, x1 y1 x2 y2 in the picture's pixels. scores: (K,). labels: (K,) indices in `names`. masks:
    (K, H, W) bool, or None where the model makes none; of a picture of more than `largest` pixels they are smaller, in
    its shape, and `mask` makes one of its size. objects: the same as [{"class", "score", "box"}, ...].

    found: boxes, scores, labels and perhaps masks for the picture's copy of at most `largest` pixels.
    """

    list_name = "detections.json"

    def __init__(self, input: Input, found: dict, *, names: Sequence[str], largest: int):
        super().__init__(input, names)
        self._found, self._largest = found, largest
        (height, width), (h, w) = self.image.shape[:2], shrunk_size(*self.image.shape[:2], largest)
        self.boxes, self.scores, self.labels = found["boxes"], found["scores"], found["labels"]
        if (h, w) != (height, width):
            self.boxes = self.boxes * np.array([width / w, height / h] * 2, np.float32)
        self.masks = found.get("masks")
        self.objects = [{"class": self.names[label], "score": round(float(score), 4),
                         "box": [round(float(v), 1) for v in box]}
                        for box, score, label in zip(self.boxes, self.scores, self.labels)]

    def __len__(self) -> int:
        return len(self.boxes)

    def mask(self, number: int) -> np.ndarray:
        """The mask of an object in the picture's own size, (H, W) bool."""
        if self.masks is None:
            raise ConfigError("this model makes no masks; those of instance segmentation do")
        return enlarged(self.masks[number], self.image.shape[:2])

    def overlay(self) -> np.ndarray:
        return np.asarray(drawn_objects(self.image, self.boxes, self.labels, names=self.names, scores=self.scores,
                                        masks=self.masks))

    def picture(self) -> np.ndarray:
        return beside_truth(shrunk(self.image, self._largest), self._found, None, names=self.names, side=640)

    def entry(self) -> dict:
        return {"scores": listed(self.objects), "objects": self.objects}

    def words(self) -> str:
        said = ", ".join(f"{name} {score:.2f}" for name, score in listed(self.objects).items())
        return f"{self._size()}, {len(self)} objects" + f": {said}" * bool(said)


def listed(objects: list) -> dict:
    """The objects' scores by name, the second of a class as "cat (2)"."""
    seen: dict = {}
    for thing in objects:
        number = sum(name.partition(" (")[0] == thing["class"] for name in seen) + 1
        seen[thing["class"] + (f" ({number})" if number > 1 else "")] = thing["score"]
    return seen
