"""Your own data: a folder of pictures, a folder of index PNGs and a list of the classes.

    <root>/classes.yaml                 class names in order, or name: [red, green, blue]
    <root>/images/<split>/<id>.jpg      JPEG, PNG, BMP, WebP, GIF or TIFF, in folders of any depth
    <root>/labels/<split>/<id>.png      the class's index per pixel, 255 = ignored
or  <root>/images/<id>.jpg, <root>/labels/<id>.png and <root>/<split>.txt with an id per line
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from jea.data.faults import fault
from jea.data.files.lists import read_lines
from jea.data.segmentation.base import AugmentedSegmentation, Sample
from jea.draw.palettes import voc_palette
from jea.errors import DataError, quoted, shortened
from jea.reading import read_yaml


class SegmentationFolder(AugmentedSegmentation):
    """Training crops and test pictures of a pair of folders.

    split: a folder in images/ and labels/, or a list <split>.txt. Without a folder or list in labels/ of that name the
        pictures have no labels, as in VOC's test.
    classes: the file with the classes, relative to root. A class 0 named "background" stays clear in overlays.
    images, labels: the folders, relative to root.
    The other arguments are those of AugmentedSegmentation.
    """

    _title, _needs = "picture", ()
    follows_exif = True  # people see their pictures, and draw labels on them, turned upright

    def __init__(self, *, root: str | Path, classes: str = "classes.yaml", images: str = "images",
                 labels: str = "labels", **options):
        self._images, self._labels = images, labels
        self.class_names, self.palette = read_classes(Path(root).expanduser() / classes)
        self.num_classes = len(self.class_names)
        self.background = 0 if self.class_names[0] == "background" else None
        super().__init__(root=root, **options)

    @classmethod
    def legend(cls, *, root, classes: str = "classes.yaml", **arguments):
        return read_classes(Path(root).expanduser() / classes)

    def _list(self) -> list[Sample]:
        if (self.root / self._images / self.split).is_dir():
            labels = f"{self._labels}/{self.split}"
            return self._pairs(f"{self._images}/{self.split}", labels if (self.root / labels).is_dir() else None)
        path = self.root / f"{self.split}.txt"
        try:
            lines = read_lines(path)
        except DataError as error:
            folder = self.root / self._images / self.split
            raise DataError(f"{self.root}: no split {quoted(self.split)}: there is no folder "
                            f"{shortened(folder, 400)}, and {error}") from None
        found = {sample.id: sample for sample in self._pairs_of_list(set(filter(None, lines)))}
        samples, seen = [], set()
        for number, id in enumerate(lines, 1):
            if not id:
                continue
            if id in seen:
                fault(f"{path}, line {number}: {id} is listed twice")
            elif id not in found:
                fault(f"{path}, line {number}: {id[:80]!r} has no picture in {self.root / self._images}")
            else:
                samples.append(found[id])
            seen.add(id)
        return samples

    def _pairs_of_list(self, wanted: set) -> list[Sample]:
        """The samples of the listed ids; labels of other pictures are no fault."""
        labels = self._files(self._labels, (".png",)) if (self.root / self._labels).is_dir() else {}
        samples = []
        for sample in self._pairs(self._images, None):
            if sample.id in wanted:
                if labels and sample.id not in labels:
                    fault(f"{self.root / sample.image}: has no label; expected "
                          f"{self.root / self._labels / (sample.id + '.png')}")
                    continue
                samples.append(sample._replace(label=labels.get(sample.id)))
        return samples


def read_classes(path: Path) -> tuple:
    """(names, palette (256, 3) uint8) of a YAML list of names, with or without colours, or of names with colours.

    Names are taken as they are written: `yes` is "yes".
    """
    if not path.exists():
        raise DataError(f"{path}: cannot read the list of classes: there is no such file; write one name per line, "
                        f"each "
                        "after a dash")
    content = read_yaml(path, error=DataError, what="list of classes", as_text=True)
    palette = voc_palette()
    if not isinstance(content, (list, dict)) or not 1 <= len(content) <= 255:
        raise DataError(f"{path}: expected a list of 1 to 255 class names, or name: [red, green, blue] lines")
    if isinstance(content, dict):
        content = [{name: colour} for name, colour in content.items()]
    colours = {place: next(iter(entry.values())) for place, entry in enumerate(content)
               if isinstance(entry, dict) and len(entry) == 1}
    names = [next(iter(entry)) if place in colours else entry for place, entry in enumerate(content)]
    if not all(isinstance(name, str) and name and name.isprintable() for name in names) or len(set(names)) < len(names):
        raise DataError(f"{path}: class names must be different pieces of text, got {quoted(names, 400)}")
    for place, colour in colours.items():
        if not (isinstance(colour, list) and len(colour) == 3 and all(
                isinstance(v, str) and re.fullmatch(r"\d{1,3}", v) and int(v) <= 255 for v in colour)):
            raise DataError(f"{path}: the colour of {shortened(names[place])} is {str(colour)[:80]!r}; expected three "
                            "whole numbers from 0 to 255")
        palette[place] = np.array([int(v) for v in colour], np.uint8)
    return tuple(names), palette
