import json
import multiprocessing
import os
import zlib

import numpy as np
import pytest

from jea.data import DATASETS, DataError, Shapes, make_shapes, read_label
from jea.data.segmentation.shapes import SHAPES_CLASSES, _polygon_distance, draw_scene

SMALL = dict(num_train=4, num_val=3, num_test=2)


def scene(split, k, seed=0):
    return draw_scene(np.random.Generator(np.random.PCG64((seed, split, k))))


@pytest.fixture(scope="module")
def val():
    return [scene(1, k) for k in range(100)]


def test_labels_are_those_of_every_other_machine(val):
    # Whoever changes these changes the data set: raise its version, so that no cache is taken for the new
    # one.
    labels = scene(0, 0)[1], scene(0, 799)[1], val[0][1], val[99][1]
    found = [zlib.crc32(label.tobytes()) for label in labels]
    assert found == [2568386651, 1073562302, 3015376479, 3743748218]


def test_scenes_are_what_is_promised(val):
    sizes = [label.shape for _, label in val]
    assert all(96 <= side <= 176 for size in sizes for side in size)
    assert len(set(sizes)) > 90 and {h > w for h, w in sizes} == {True, False}
    for image, label in val:
        assert image.dtype == label.dtype == np.uint8 and image.shape == (*label.shape, 3)
        assert set(np.unique(label)) <= {*range(7), 255}
        assert (label == 0).any() and (label == 255).any() and image.std() > 5


def test_classes_are_balanced(val):
    pixels = sum(np.bincount(label.ravel(), minlength=256) for _, label in val)
    share = pixels / pixels.sum()
    assert 0.5 < share[0] < 0.8 and 0.02 < share[255] < 0.08
    assert all(0.02 < share[c] < 0.08 for c in range(1, 7))
    pictures = [sum((label == c).any() for _, label in val) for c in range(1, 7)]
    assert min(pictures) >= 25


def test_colour_does_not_tell_the_class(val):
    means = [[] for _ in range(7)]
    for image, label in val:
        for c in np.unique(label[label != 255]):
            means[c].append(image[label == c].mean(0))
    centres = np.array([np.mean(m, 0) for m in means])
    spread = np.mean([np.std(m, 0).mean() for m in means])
    assert np.abs(centres - centres.mean(0)).max() < 0.6 * spread


def test_void_lies_between_classes(val):
    # No pixel of one class touches a pixel of another: the outline of 255 is closed.
    for _, label in val[:30]:
        for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_polygon_distance_by_hand():
    square = [(0, 0), (4, 0), (4, 4), (0, 4)]
    x, y = np.array([[2.0, 1.0, 6.0, 7.0, -3.0]]), np.array([[2.0], [8.0]])
    distance = _polygon_distance(x, y, square)
    assert distance[0].tolist() == [-2, -1, 2, 3, 3]
    assert distance[1].tolist() == pytest.approx([4, 4, 20 ** 0.5, 5, 5])


def test_files_are_in_voc_layout(tmp_path):
    calls = []
    root = make_shapes(tmp_path / "s", **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 9) for k in range(1, 10)]
    assert sorted(os.listdir(root)) == ["ImageSets", "JPEGImages", "SegmentationClass", "shapes.json"]
    assert os.listdir(tmp_path) == ["s"]
    lists = {p.stem: p.read_text().split() for p in (root / "ImageSets" / "Segmentation").iterdir()}
    assert lists == {"train": [f"train_{k:04d}" for k in range(4)], "val": [f"val_{k:04d}" for k in range(3)],
                     "test": ["test_0000", "test_0001"], "trainval": lists["train"] + lists["val"]}
    assert len(os.listdir(root / "JPEGImages")) == 9
    labels = sorted(os.listdir(root / "SegmentationClass"))
    assert labels == sorted(f"{name}.png" for name in lists["trainval"])
    assert (read_label(root / "SegmentationClass" / "val_0002.png", 7) == scene(1, 2)[1]).all()


def test_pictures_do_not_depend_on_the_counts_but_on_the_seed(tmp_path):
    first = make_shapes(tmp_path / "a", **SMALL)
    second = make_shapes(tmp_path / "b", num_train=1, num_val=2, num_test=0)
    other = make_shapes(tmp_path / "c", num_train=1, num_val=2, num_test=0, seed=1)
    for folder, name in (("JPEGImages", "val_0001.jpg"), ("SegmentationClass", "val_0001.png")):
        a, b, c = ((root / folder / name).read_bytes() for root in (first, second, other))
        assert a == b != c


def use_small(monkeypatch):
    import jea.data.segmentation.shapes as module
    plain = module.make_shapes
    monkeypatch.setattr(module, "make_shapes", lambda root: plain(root, **SMALL))


def test_dataset(tmp_path, monkeypatch):
    use_small(monkeypatch)
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "home"))
    data = DATASETS["shapes"](split="val", crop_size=65)
    assert data.root == tmp_path / "home" / "shapes-v1"
    assert (len(data), data.num_classes, data.class_names) == (3, 7, SHAPES_CLASSES)
    image, label = scene(1, 1)
    sample = data.test_sample(1)
    assert sample["id"] == "val_0001" and (sample["label"] == label).all()
    assert np.abs(sample["image"].astype(int) - image).mean() < 6
    assert data.train_sample(0, np.random.default_rng(0))["image"].shape == (3, 65, 65)
    assert Shapes(split="test").test_sample(0)["label"] is None
    stamp = (data.root / "shapes.json").stat().st_mtime_ns
    assert len(Shapes(split="trainval")) == 7 and (data.root / "shapes.json").stat().st_mtime_ns == stamp


def test_default_place_is_the_users_cache(tmp_path, monkeypatch):
    use_small(monkeypatch)
    monkeypatch.delenv("JEA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Shapes().root == tmp_path / ".cache" / "jea" / "shapes-v1"


def test_damaged_data_set_says_how_to_mend_it(tmp_path, monkeypatch):
    use_small(monkeypatch)
    root = tmp_path / "s"
    Shapes(root=root)
    (root / "JPEGImages" / "train_0001.jpg").unlink()
    with pytest.raises(DataError, match="train_0001.jpg: picture does not exist.*Delete .*made again"):
        Shapes(root=root)


@pytest.mark.parametrize("name, text, message", [
    ("thesis.txt", "", "holds something else"), ("shapes.json", "{", "holds a broken shapes.json"),
    ("shapes.json", json.dumps({"shapes": 0}), "holds {'shapes': 0}"),
])
def test_other_data_is_left_alone(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{message}.*delete it or name another folder"):
        make_shapes(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == text


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/s: cannot make the shapes data set.*JEA_HOME"):
        make_shapes(tmp_path / "file" / "s", **SMALL)


def test_interrupted_making_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "s", **SMALL, progress=stop)
    assert os.listdir(tmp_path) == []
    (tmp_path / "s").mkdir()  # an empty folder may be given
    assert (make_shapes(tmp_path / "s", **SMALL) / "shapes.json").exists()


def _make(root):
    return str(make_shapes(root, num_train=20, num_val=10, num_test=0))


def test_several_processes_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_make, [tmp_path / "s"] * 3, chunksize=1) == [str(tmp_path / "s")] * 3
    assert os.listdir(tmp_path) == ["s"]
    assert len(os.listdir(tmp_path / "s" / "JPEGImages")) == 30
    assert Shapes.__mro__[1](root=tmp_path / "s", num_classes=7).test_sample(19)["label"] is not None
