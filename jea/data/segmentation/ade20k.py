"""ADE20K as the SceneParsing benchmark has it: 150 classes.

    ADEChallengeData2016/images/{training,validation}/<id>.jpg
                         annotations/{training,validation}/<id>.png     0 = something else, 1 to 150 = the classes
    release_test/testing/<id>.jpg                                       beside it or in it; without labels
"""
from __future__ import annotations

import numpy as np

from jea.data.dataset import check_split
from jea.data.files.labels import read_label
from jea.data.segmentation.base import AugmentedSegmentation, Sample
from jea.data.segmentation.submission import Submission
from jea.draw.palettes import padded_palette

ADE20K_CLASSES = tuple("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television
receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster,
stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""".replace("\n", " ").strip().split(", "))

# One colour per class, as in the published code: red, green, blue in hexadecimal.
_COLOURS = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)

_FOLDERS = {"train": ("training",), "val": ("validation",), "trainval": ("training", "validation"),
            "training": ("training",), "validation": ("validation",)}


class ADE20K(AugmentedSegmentation):
    """ADE20K SceneParsing: splits train (20,210 pictures), val (2,000), trainval and test (without labels).

    Classes are 0 to 149; what the files call 0 is ignored. The other arguments are those of AugmentedSegmentation.
    """

    num_classes = 150
    class_names = ADE20K_CLASSES
    palette = padded_palette(np.frombuffer(bytes.fromhex("".join(_COLOURS)), np.uint8).reshape(-1, 3))
    submission = Submission(folder="ade20k_test", archive="ade20k_test.zip", values=tuple(range(1, 151)))
    _title, _needs = "ADE20K", ("images",)

    def _list(self) -> list[Sample]:
        if self.split == "test":
            places = (self.root, self.root.parent)
            self.root = next((place for place in places if (place / "release_test").is_dir()), self.root)
            return self._pairs("release_test/testing", None)
        self.root = self._find_root("ADEChallengeData2016")
        check_split(self.split, (*_FOLDERS, "test"), self.root)
        return [sample for name in _FOLDERS[self.split] for sample in self._pairs(f"images/{name}",
                                                                                  f"annotations/{name}")]

    def _read_label(self, sample: Sample) -> np.ndarray:
        return (read_label(self.root / sample.label, 151, ignore=0) - np.uint8(1)).astype(np.uint8)  # 0 becomes 255
