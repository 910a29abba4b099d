"""Pictures with boxes, classes and masks: what training and evaluation of detectors get of them."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence, Union

import numpy as np

from jea.data.dataset import Batch, Dataset, Examined, digest
from jea.data.detection import resizing
from jea.data.detection.instances import NO_MASK, Instances
from jea.data.files.pictures import read_image
from jea.errors import DataError

LARGEST_ID = 10_000  # of a category, where ids are classes


class DetectionDataset(Dataset):
    """Base of the data sets of detection: a subclass says where pictures and instances are.

    Args:
        root: the folder. split: a part of it.
        min_size: of the shorter side after the resize; of several, training draws one and evaluation takes the last.
        max_size: of the longer side. resize: "torchvision", "mmdet" or "detectron2": whose sizes and pixels.
        flip: probability of a mirrored picture in training.
        multiple: batches are padded to multiples of it. A larger one means fewer sizes, which are what convolutions are
            prepared for.
        masks: with masks; else boxes alone.
        keep_ids: class k is the category with id k + 1, as in torchvision's models; else the k-th by id.
    """

    label_unit = "boxes"
    ragged = ("boxes", "labels", "masks")

    def __init__(self, *, root: Union[str, Path], split: str = "train", min_size: Union[int, Sequence[int]] = 800,
                 max_size: int = 1333, resize: str = "torchvision", flip: float = 0.5, multiple: int = 32,
                 masks: bool = True, keep_ids: bool = False):
        self.root, self.split = Path(root).expanduser(), split
        self.preparation = resizing.Preparation(min_size=min_size, max_size=max_size, resize=resize, multiple=multiple)
        self.min_size, self.max_size, self.resize, self.multiple = (
            self.preparation.min_size, max_size, resize, multiple)
        if not 0 <= flip <= 1:
            raise DataError(f"data.flip is {flip}; expected a probability, 0 to 1")
        self.flip, self.masks = flip, masks
        self.instances, self.folder = self.read()
        ids = self.instances.category_ids
        if keep_ids:
            names = dict(zip(ids, self.instances.names))
            if ids and not 1 <= min(ids) <= max(ids) <= LARGEST_ID:
                raise DataError(f"{self.root}: data.keep_ids makes a class of each number up to the largest category "
                                f"id; the ids are {min(ids)} to {max(ids)}; expected 1 to {LARGEST_ID}")
            self.class_ids = tuple(range(1, max(ids, default=0) + 1))
            self.class_names = tuple(names.get(id, f"(no category {id})") for id in self.class_ids)
        else:
            self.class_ids, self.class_names = ids, self.instances.names
        self.num_classes = len(self.class_ids)
        places = {id: place for place, id in enumerate(self.class_ids)}
        self._label = np.array([places[id] for id in ids], np.int64)  # of each category
        known = set(ids)
        self.placeholders = tuple(k for k, id in enumerate(self.class_ids) if id not in known)
        self._usable = self._usable_boxes()
        self.pictures = np.arange(len(self.instances.files))

    def read(self) -> tuple[Instances, Path]:
        """The instances, and the folder of their pictures."""
        raise self._lacks("instances", "read()")

    @classmethod
    def legend(cls, **arguments) -> Sequence[str]:
        """Names of the classes of the data set with these arguments as far as they are known without its files."""
        return cls.class_names

    def for_training(self) -> DetectionDataset:
        """Leave out the pictures that show nothing to train on."""
        first = self.instances.first
        kept = [p for p in range(len(self.instances.files)) if self._usable[first[p]:first[p + 1]].any()]
        if not kept:
            raise DataError(f"{self.root}: no picture of split {self.split} has a box to train on")
        self.pictures = np.array(kept)
        return self

    def _usable_boxes(self) -> np.ndarray:
        """Which objects train: no crowd, and a box that is not empty within its picture."""
        found = self.instances
        sizes = np.repeat(found.sizes, np.diff(found.first), axis=0)
        low = np.maximum(found.boxes[:, :2], 0)
        high = np.minimum(found.boxes[:, :2] + found.boxes[:, 2:], sizes[:, ::-1])
        smallest = 1.0 if self.resize == "mmdet" else 0.0
        sides = high - low
        return ~found.crowd & (sides > 0).all(1) & (sides >= smallest).all(1) & (found.areas > 0)

    def __len__(self) -> int:
        return len(self.pictures)

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture as the annotations have it."""
        return tuple(int(side) for side in self.instances.sizes[self.pictures[index]])

    def path(self, index: int) -> Path:
        return self.folder / self.instances.files[self.pictures[index]]

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, of the size that the annotations tell."""
        image, shape = read_image(self.path(index)), self.shape(index)
        if image.shape[:2] != shape:
            raise DataError(f"{self.path(index)}: is {image.shape[1]} x {image.shape[0]}, the annotations say "
                            f"{shape[1]} x {shape[0]}")
        return image

    def objects(self, index: int) -> np.ndarray:
        """The objects of a picture that train."""
        own = self.instances.of(self.pictures[index])
        return np.array([n for n in own if self._usable[n]], np.int64)

    def corners(self, rows, shape) -> np.ndarray:
        """Boxes x1 y1 x2 y2 within a picture, float32 (N, 4)."""
        boxes = self.instances.boxes[rows]
        high = np.array([shape[1], shape[0]])
        return np.concatenate([np.clip(boxes[:, :2], 0, high), np.clip(boxes[:, :2] + boxes[:, 2:], 0, high)],
                              1).astype(np.float32)

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """{"image": float32 (3, h, w), "size", "seed", "boxes" (G, 4), "labels" (G,), "masks" uint8 (G, h, w)}, resized
        and perhaps mirrored."""
        image, shape, rows = self.picture(index), self.shape(index), self.objects(index)
        shortest = self.min_size[int(rng.random() * len(self.min_size))]
        size = resizing.new_size(*shape, shortest, self.max_size, self.resize)
        boxes = resizing.moved(self.corners(rows, shape), shape, size)
        masks = np.zeros((len(rows), *(size if self.masks else (0, 0))), np.uint8)
        if self.masks:
            for place, n in enumerate(rows):
                masks[place] = resizing.nearest(self.instances.mask(n, *shape)[None], size)[0]
        if rng.random() < self.flip:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        return {"image": resizing.prepared(image, size, self.resize), "size": np.array(size, np.int64),
                "seed": np.int64(rng.integers(1 << 31)), "boxes": boxes,
                "labels": self._label[self.instances.classes[rows]], "masks": np.ascontiguousarray(masks)}

    def collate(self, samples: Sequence[dict]) -> Batch:
        """Pad the pictures to one size; boxes, labels and masks become lists."""
        batch = Batch(image=resizing.padded([s["image"] for s in samples], self.multiple))
        for name in samples[0]:
            if name != "image":
                entries = [sample[name] for sample in samples]
                batch[name] = entries if name in self.ragged else np.stack(entries)
        return batch

    def test_sample(self, index: int) -> dict[str, Any]:
        """{"id", "number", "picture" (H, W, 3) uint8, "image" float32 (3, h, w)}."""
        image = self.picture(index)
        return {"id": str(self.instances.ids[self.pictures[index]]), "number": index, "picture": image,
                "image": self.prepared(image)}

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 as the model takes it in testing, float32 (3, h, w)."""
        return self.preparation.prepared(image)

    def truth(self, indices: Sequence[int]) -> dict:
        """The ground truth of some samples as a COCO-format object; annotations are numbered anew, from 1."""
        found, annotations = self.instances, []
        for index in indices:
            height, width = self.shape(index)
            for n in found.of(self.pictures[index]):
                annotation = {"id": len(annotations) + 1, "image_id": int(index), "iscrowd": int(found.crowd[n]),
                              "category_id": int(found.category_ids[found.classes[n]]), "area": float(found.areas[n]),
                              "bbox": found.boxes[n].tolist()}
                if self.masks and found.kinds[n] != NO_MASK:
                    annotation["segmentation"] = {"size": [height, width], "counts": found.runs(n, height, width)}
                annotations.append(annotation)
        return {"images": [{"id": int(i), "height": self.shape(i)[0], "width": self.shape(i)[1]} for i in indices],
                "annotations": annotations,
                "categories": [{"id": int(id), "name": name} for id, name in zip(found.category_ids, found.names)]}

    def count_objects(self, indices: Sequence[int]) -> np.ndarray:
        """How many objects of some samples are of each class, (num_classes,); regions of many do not count."""
        counts = np.zeros(self.num_classes, np.int64)
        for index in indices:
            rows = self.instances.of(self.pictures[index])
            own = self.instances.classes[rows.start:rows.stop][~self.instances.crowd[rows.start:rows.stop]]
            counts += np.bincount(self._label[own], minlength=self.num_classes)
        return counts

    def label_counts(self, index: int) -> np.ndarray | None:
        """How many of the objects that train are of each class; no picture is read."""
        if not self.has_truth():
            return None
        return np.bincount(self._label[self.instances.classes[self.objects(index)]], minlength=self.num_classes)

    def has_truth(self) -> bool:
        """Whether the split has annotations at all."""
        return bool(len(self.instances.classes))

    def examine(self, index: int) -> Examined:
        found = Examined(str(self.path(index)))
        image = found.attempt(self.picture, index)
        if image is not None:
            found.size, found.digest = image.shape[:2], digest(image)
        shape, rows = self.shape(index), self.instances.of(self.pictures[index])
        found.counts = np.bincount(self._label[self.instances.classes[rows.start:rows.stop]],
                                   minlength=self.num_classes)[:self.num_classes]
        for n in rows if image is not None else ():  # else the size of its masks is only claimed
            if self.masks and self.instances.kinds[n] != NO_MASK:
                problem = self._mask_problem(n, shape)
                if problem:
                    found.problems.append(f"{found.name}: annotation {self.instances.annotation_ids[n]}: {problem}")
        return found

    def _mask_problem(self, n: int, shape) -> str:
        mask, (x, y, w, h) = self.instances.mask(n, *shape), self.instances.boxes[n]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return "its mask has no pixel"
        away = max(x - columns[0], y - rows[0], columns[-1] + 1 - x - w, rows[-1] + 1 - y - h)
        return f"its mask leaves its box by {away:.0f} pixels" if away > 2 else ""
