"""Whatever file a person names: a pipe does not hang, a huge empty one is not read, and each is one line."""
import json
import os
import time

import numpy as np
import pytest

from jea.data import COCOJson, VOCDetection, write_image
from jea.data.detection.scenes import make_scenes
from jea.data.files.cache import Packed, cached, pack
from jea.data.segmentation.shapes import make_shapes
from jea.errors import DataError, TrainingError, UserError
from jea.tasks.classification import read_class_list
from jea.training.log import Log


def class_list(folder):
    return folder / "list.txt", "a\nb\nc\n", lambda: read_class_list(folder / "list.txt", 3)


def _voc(folder):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    write_image(folder / "JPEGImages" / "a.jpg", np.zeros((40, 50, 3), np.uint8))
    xml = ("<annotation><size><width>50</width><height>40</height></size><object><name>dog</name><bndbox><xmin>1</xmin>"
           "<ymin>2</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object></annotation>")
    (folder / "Annotations" / "a.xml").write_text(xml)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return xml, lambda: VOCDetection(root=folder, split="train")


def voc_list(folder):
    return folder / "ImageSets" / "Main" / "train.txt", "a\n", _voc(folder)[1]


def voc_annotation(folder):
    xml, make = _voc(folder)
    return folder / "Annotations" / "a.xml", xml, make


def coco_annotations(folder):
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    write_image(folder / "train" / "a.jpg", np.zeros((40, 50, 3), np.uint8))
    content = {"images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}],
               "categories": [{"id": 1, "name": "dog"}],
               "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81,
                                "iscrowd": 0}]}
    return (folder / "annotations" / "train.json", json.dumps(content),
            lambda: COCOJson(root=folder, split="train", masks=False))


def shapes(folder):
    sizes = {"num_train": 1, "num_val": 1, "num_test": 1}
    make_shapes(folder / "s", **sizes)
    path = folder / "s" / "shapes.json"
    return path, path.read_text(), lambda: make_shapes(folder / "s", **sizes)


def scenes(folder):
    make_scenes(folder / "s", counts={"train": 1, "val": 1})
    path = folder / "s" / "scenes.json"
    return path, path.read_text(), lambda: make_scenes(folder / "s", counts={"train": 1, "val": 1})


def training_log(folder):
    return folder / "log.jsonl", '{"step": 1, "loss": 2.0}\n', lambda: Log(folder, 1).close()


SOURCES = (class_list, voc_list, voc_annotation, coco_annotations, shapes, scenes, training_log)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_pipes_and_huge_files_are_one_line(tmp_path, source):
    path, content, use = source(tmp_path)
    path.write_text(content)
    use()  # sound
    for make in (os.mkfifo, lambda p: os.truncate(p.write_bytes(b"x") and p, 1 << 36)):
        path.unlink()
        make(path)
        started = time.perf_counter()
        if source is training_log and path.is_fifo():
            continue  # it is written anew, beside the pipe's name
        with pytest.raises(UserError, match=r"expected a regular file|over the limit|holds a broken") as caught:
            use()
        assert isinstance(caught.value, (DataError, TrainingError))
        assert str(path.parent) in str(caught.value) and len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value) and time.perf_counter() - started < 5


def test_a_cache_that_is_a_pipe_is_made_anew(tmp_path):
    (tmp_path / "a.txt").write_text("x")

    def build():
        return pack([np.ones((2, 3))], [0])
    cached(tmp_path, "a", [tmp_path / "a.txt"], build)
    for name in ("checksums.json", "points.npy"):
        path = tmp_path / ".jea" / "a" / name
        path.unlink()
        os.mkfifo(path)
        found = cached(tmp_path, "a", [tmp_path / "a.txt"], build)
        assert isinstance(found, Packed) and found.points.tolist() == [[1.0] * 3] * 2 and path.is_file()
