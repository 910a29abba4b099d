"""Pascal VOC's detection annotations: boxes, no masks."""
from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from jea.data.detection.base import DetectionDataset
from jea.data.detection.instances import LARGEST_SIDE, Instances, soft
from jea.data.faults import fault
from jea.data.files.lists import read_lines
from jea.data.segmentation.voc import VOC_CLASSES
from jea.errors import DataError
from jea.reading import decode, read_file

NAMES = VOC_CLASSES[1:]
_MAX_XML = 4 * 1024 * 1024  # bytes of an annotation; VOC's longest has 20 kB


class VOCDetection(DetectionDataset):
    """VOC's boxes: splits train, val, trainval, test, as ImageSets/Main lists them.

        JPEGImages/<id>.jpg   Annotations/<id>.xml   ImageSets/Main/<split>.txt

    Objects marked difficult count neither as found nor as missed, and do not train. The other arguments are
    DetectionDataset's; there are no masks.
    """

    class_names = NAMES

    def __init__(self, *, masks: bool = False, **options):
        if masks:
            raise DataError("data.masks is true; VOC's annotations of boxes have no masks: leave it out")
        super().__init__(masks=False, **options)

    def read(self) -> tuple[Instances, Path]:
        folder = next((self.root / sub for sub in ("", "VOC2012", "VOCdevkit/VOC2012")
                       if (self.root / sub / "ImageSets").is_dir()), self.root)
        listing = folder / "ImageSets" / "Main" / f"{self.split}.txt"
        ids = [line.split()[0] for line in read_lines(listing, "list of pictures") if line]
        if not ids:
            raise DataError(f"{listing}: lists no picture")
        found, rows = Instances(names=NAMES, category_ids=tuple(range(1, len(NAMES) + 1))), []
        sizes, counts = [], []
        for id in ids:
            entry = self._read(folder / "Annotations" / f"{id}.xml")
            if entry is None:
                continue
            found.files.append(f"{id}.jpg")
            found.ids.append(id)
            sizes.append(entry[0])
            counts.append(len(entry[1]))
            rows += entry[1]
        found.sizes, found.first = np.array(sizes, np.int32).reshape(-1, 2), np.cumsum([0, *counts])
        found.classes = np.array([row[0] for row in rows], np.int32)
        found.boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
        found.crowd = np.array([row[2] for row in rows], bool)
        found.areas = found.boxes[:, 2] * found.boxes[:, 3]
        found.annotation_ids = list(range(1, len(rows) + 1))
        found.kinds = np.zeros(len(rows), np.uint8)
        found.parts, found.starts, found.numbers = np.zeros(len(rows) + 1, np.int64), np.zeros(1, np.int64), np.zeros(0)
        return found, folder / "JPEGImages"

    def _read(self, path: Path):
        """((height, width), [(class, (x, y, w, h), difficult), ...]), or None for a fault that is being collected."""
        try:
            data = read_file(path, limit=_MAX_XML, error=DataError, what="annotation")
            text = decode(data, path, error=DataError, what="annotation")
        except DataError as error:
            fault(str(error))
            return None
        try:
            if "<!DOCTYPE" in text or "<!ENTITY" in text:
                raise DataError("it defines entities, which no annotation does")
            tree = ElementTree.fromstring(text)
            size = tuple(int(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
            if not all(1 <= side <= LARGEST_SIDE for side in size):
                raise DataError(f"its size is {size[1]} x {size[0]}")
            rows = []
            for item in tree.iter("object"):
                name = item.findtext("name", "")
                if name not in NAMES:
                    raise DataError(f"object {name[:40]!r}; expected one of VOC's 20 classes")
                x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
                box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)  # pixels are counted from 1, both ends included
                if not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0 or x2 > size[1] + 1 or y2 > size[0] + 1:
                    soft(f"{path}: {name}: its box {[x1, y1, x2, y2]} is empty or leaves its picture")
                if np.isfinite(box).all():
                    rows.append((NAMES.index(name), box, item.findtext("difficult", "0").strip() == "1"))
            return size, rows
        except (ElementTree.ParseError, ValueError, RecursionError) as error:  # DataError is a ValueError
            fault(f"{path}: not an annotation of VOC: {str(error)[:200]}")
        return None
