"""COCO's detection data, and any data set in its format."""
from __future__ import annotations

from pathlib import Path

from jea.data.detection.base import DetectionDataset
from jea.data.detection.instances import Instances, read_instances
from jea.data.faults import fault, is_collecting
from jea.errors import DataError

# COCO 2017's 80 categories in the order of their ids, which are 1 to 90 without these.
NO_CATEGORIES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush")


class COCOJson(DetectionDataset):
    """Pictures and a COCO-format file.

        annotations/<split>.json    images, annotations, categories
        <split>/                    the pictures

    annotations, images: other places below root, with {split} for the split. The other arguments are
    DetectionDataset's.
    """

    def __init__(self, *, annotations: str = "annotations/{split}.json", images: str = "{split}", **options):
        self._annotations, self._images = annotations, images
        super().__init__(**options)

    def places(self) -> tuple[str, str]:
        """The file of the annotations and the folder of the pictures, below root."""
        return tuple(text.replace("{split}", self.split) for text in (self._annotations, self._images))

    def read(self) -> tuple[Instances, Path]:
        file, folder = (self.root / place for place in self.places())
        found = read_instances(file, wanted_masks=self.masks)
        if not found.files:
            raise DataError(f"{file}: lists no picture")
        if not found.category_ids:
            raise DataError(f"{file}: lists no category")
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {file} has {len(found.files)} pictures in it: name it as "
                            "data.images")
        if is_collecting():
            for name in found.files:
                if not (folder / name).is_file():
                    fault(f"{folder / name}: picture does not exist, but {file} lists it")
        return found, folder


class COCODetection(COCOJson):
    """COCO 2017: splits train, val and test-dev (whose answers only the server has).

        {train,val,test}2017/                          the pictures, also in images/
        annotations/instances_{train,val}2017.json
        annotations/image_info_test-dev2017.json

    keep_ids=True for models of torchvision, whose 90 classes are COCO's ids. The other arguments are
    DetectionDataset's.
    """

    class_names = CATEGORIES

    def __init__(self, **options):
        super().__init__(**options)

    @classmethod
    def legend(cls, *, keep_ids: bool = False, **arguments):
        if not keep_ids:
            return CATEGORIES
        names = dict(zip((id for id in range(1, 91) if id not in NO_CATEGORIES), CATEGORIES))
        return tuple(names.get(id, f"(no category {id})") for id in range(1, 91))

    def places(self) -> tuple[str, str]:
        folder = "test2017" if self.split.startswith("test") else f"{self.split}2017"
        if not (self.root / folder).is_dir() and (self.root / "images" / folder).is_dir():
            folder = f"images/{folder}"
        kind = "image_info" if self.split.startswith("test") else "instances"
        return f"annotations/{kind}_{self.split}2017.json", folder
