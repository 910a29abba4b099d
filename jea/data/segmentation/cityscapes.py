"""Cityscapes: 19 classes, read from labelIds or labelTrainIds.

    leftImg8bit/{train,val,test}/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/{train,val}/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png         ids 0 to 33
                                                      ..._gtFine_labelTrainIds.png  0 to 18 and 255; made by the
                                                                                    data set's own scripts
"""
from __future__ import annotations

import numpy as np

from jea.data.dataset import check_split
from jea.data.files.labels import read_label
from jea.data.segmentation.base import AugmentedSegmentation, Sample
from jea.data.segmentation.submission import Submission
from jea.data.views.crops import IGNORE
from jea.draw.palettes import padded_palette
from jea.errors import DataError, quoted

CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes, in order

_COLOURS = ((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
            (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
            (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32))
_TRAIN_IDS = np.full(256, IGNORE, np.uint8)
_TRAIN_IDS[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
_HIGHEST_ID = 33
_SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


class Cityscapes(AugmentedSegmentation):
    """Cityscapes: splits train (2,975 pictures of 2048 x 1024), val (500), trainval and test (1,525, without labels).

    labels: "labelIds", as the archive has them, or "labelTrainIds". Either way the classes are 0 to 18, and everything
        else is ignored. Predictions for the server are written as labelIds.
    The other arguments are those of AugmentedSegmentation.
    """

    num_classes = 19
    class_names = CITYSCAPES_CLASSES
    palette = padded_palette(_COLOURS)
    submission = Submission(folder="cityscapes_labelIds", archive="cityscapes_labelIds.zip", values=CITYSCAPES_IDS)
    _title, _needs = "Cityscapes", ("leftImg8bit",)

    def __init__(self, *, labels: str = "labelIds", crop_size: int = 769, **options):
        if labels not in ("labelIds", "labelTrainIds"):
            raise DataError(f"labels is {quoted(labels)}; expected labelIds or labelTrainIds")
        self._labels = labels
        super().__init__(crop_size=crop_size, **options)

    def _list(self) -> list[Sample]:
        self.root = self._find_root("cityscapes")
        check_split(self.split, _SPLITS, self.root)
        samples = []
        for name in _SPLITS[self.split]:
            samples += self._pairs(f"leftImg8bit/{name}", None if name == "test" else f"gtFine/{name}",
                                   picture_end="_leftImg8bit.png", label_end=f"_gtFine_{self._labels}.png")
        return [sample._replace(id=sample.id.rpartition("/")[2]) for sample in samples]  # <city>/ is in the name too

    def _read_label(self, sample: Sample) -> np.ndarray:
        if self._labels == "labelTrainIds":
            return super()._read_label(sample)
        return _TRAIN_IDS[read_label(self.root / sample.label, _HIGHEST_ID + 1, ignore=IGNORE)]
