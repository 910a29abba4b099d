"""Classification data sets together: the table, evaluation batches, the data check."""

import numpy as np
from PIL import Image

from jea.data import CIFAR10, CIFAR100, DATASETS, ImageFolder, ShapeClasses, TinyImageNet, map_ordered
from jea.data.check import check_splits
from jea.data.views.augment import EvalView


def put(path, value=100, size=(8, 6), mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") or isinstance(value, tuple) else (value,) * len(mode)
    Image.new(mode, size, colour).save(path, format)
    return path


def test_every_classification_data_set_is_in_the_table():
    assert {DATASETS[name] for name in ("image_folder", "cifar10", "cifar100", "tiny_imagenet", "shape_classes")} == \
        {ImageFolder, CIFAR10, CIFAR100, TinyImageNet, ShapeClasses}


def test_evaluation_batches_in_workers():
    view = EvalView(ShapeClasses(split="val", num_val=7), 32, 1.0)
    chunks = [range(0, 4), range(4, 7)]
    here = list(map_ordered(view.test_batch, chunks, 0))
    there = list(map_ordered(view.test_batch, chunks, 2))
    assert [len(labels) for _, labels in here] == [4, 3] and here[0][0].shape == (4, 3, 32, 32)
    for (a, x), (b, y) in zip(here, there):
        assert np.array_equal(a, b) and np.array_equal(x, y)


def test_jea_data_check_of_many_classes(tmp_path):
    """More classes than a label picture can have; a doubled and a broken picture are found."""
    for k in range(300):
        put(tmp_path / "train" / f"c{k:03d}" / "a.png", (k % 256, k // 256, 7), format="PNG")
    put(tmp_path / "train" / "c007" / "b.png", (7, 0, 7), format="PNG")
    (tmp_path / "train" / "c299" / "z.png").write_bytes(b"")
    report = check_splits(ImageFolder, {"root": str(tmp_path)}, ["train"], num_workers=0, shown=False)
    assert report.pictures == {"train": 302} and report.pictures_with[[0, 7, 299]].tolist() == [1, 2, 1]
    assert len(report.problems) == 2 and "same picture" in report.problems[0] and "z.png" in report.problems[1]
