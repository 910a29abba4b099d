import pickle

import numpy as np
import pytest
from PIL import Image

from jea.data import DATASETS, DataError, VOCSegmentation, voc_palette, write_image, write_index_png


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


def make_voc(folder, splits, *, aug=(), size=(20, 30)):
    """A tiny VOC2012 folder; pixels of picture k are 10 * k, its label k % 21 with one void column."""
    lists = folder / "ImageSets" / "Segmentation"
    for name in ("JPEGImages", "SegmentationClass", *(["SegmentationClassAug"] if aug else [])):
        (folder / name).mkdir(parents=True)
    lists.mkdir(parents=True)
    names = sorted({id for ids in splits.values() for id in ids} | set(aug))
    for k, id in enumerate(names):
        write_image(folder / "JPEGImages" / f"{id}.jpg", np.full((*size, 3), 10 * k, np.uint8))
        label = np.full(size, k % 21, np.uint8)
        label[:, 0] = 255
        if id not in splits.get("test", ()):
            write_index_png(folder / "SegmentationClass" / f"{id}.png", label, voc_palette())
        if id in aug:
            Image.fromarray(label).save(folder / "SegmentationClassAug" / f"{id}.png")
    for split, ids in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids))
    return folder


@pytest.fixture
def voc(tmp_path):
    splits = {"train": ["2007_a", "2007_b"], "val": ["2008_c"], "trainval": ["2007_a", "2007_b", "2008_c"],
              "test": ["2009_t"]}
    return make_voc(tmp_path / "up" / "VOCdevkit" / "VOC2012", splits)


def list_file(voc, split="train"):
    return voc / "ImageSets" / "Segmentation" / f"{split}.txt"


@pytest.mark.parametrize("up", [0, 1, 2])
def test_root_may_be_voc2012_vocdevkit_or_above(voc, up):
    root = [voc, *voc.parents][up]
    data = VOCSegmentation(root=str(root))
    assert data.root == voc and data.ids == ["2007_a", "2007_b"] and len(data) == 2


def test_root_that_is_not_voc(tmp_path, voc):
    with pytest.raises(DataError, match="nowhere: no VOC data there") as error:
        VOCSegmentation(root=tmp_path / "nowhere")
    for part in ("nowhere,", "nowhere/VOC2012", "nowhere/VOCdevkit/VOC2012", "JPEGImages", "not a folder"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="no VOC data there; looked for"):
        VOCSegmentation(root=tmp_path)


def test_attributes(voc):
    data = DATASETS["voc"](root=voc)
    assert data.num_classes == 21 and data.ignore_index == 255 and data.class_names[20] == "tvmonitor"
    assert data.palette[1].tolist() == [128, 0, 0]
    assert VOCSegmentation(root=voc, num_classes=3).class_names == ("class 0", "class 1", "class 2")
    assert VOCSegmentation(root=voc, num_classes=2, class_names=["a", "b"]).class_names == ("a", "b")


@pytest.mark.parametrize("settings, message", [
    (dict(num_classes=256), "num_classes is 256"), (dict(num_classes=0), "num_classes is 0"),
    (dict(crop_size=0), "crop_size is 0"),
    (dict(scales=[]), "scales are"), (dict(scales=[0.5, 0]), "scales are"),
    (dict(num_classes=3, class_names=["a"]), "class_names has 1 names, num_classes is 3"),
    (dict(label_dir="Labels"), "Labels: label_dir is not a folder"),
])
def test_wrong_settings(voc, settings, message):
    with pytest.raises(DataError, match=message):
        VOCSegmentation(root=voc, **settings)


def test_test_sample(voc):
    sample = VOCSegmentation(root=voc, split="val").test_sample(0)
    assert sample["id"] == "2008_c"
    assert sample["image"].shape == (20, 30, 3) and sample["image"].dtype == np.uint8
    assert np.abs(sample["image"].astype(int) - 20).max() <= 1
    expected = np.full((20, 30), 2)
    expected[:, 0] = 255
    assert sample["label"].dtype == np.uint8 and (sample["label"] == expected).all()


def test_split_test_has_no_labels(voc):
    data = VOCSegmentation(root=voc, split="test")
    assert data.test_sample(0)["label"] is None and data.test_sample(0)["image"].shape == (20, 30, 3)
    with pytest.raises(DataError, match="split test has no labels to train on"):
        data.train_sample(0, rng(0))


def test_train_sample(voc):
    data = VOCSegmentation(root=voc, crop_size=41, scales=(1.0,))
    sample = data.train_sample(1, rng(0))
    image, label = sample["image"], sample["label"]
    assert image.shape == (3, 41, 41) and image.dtype == np.float32 and image.flags.c_contiguous
    assert label.shape == (41, 41) and label.dtype == np.int32
    inside = label == 1
    assert inside.sum() == 20 * 29 and (label[~inside] == 255).all()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.abs(image[:, inside].mean(1) - (10 / 255 - mean) / std).max() < 0.03
    again = data.train_sample(1, rng(0))
    assert (again["image"] == image).all() and (again["label"] == label).all()


def test_exif_orientation_is_ignored(voc):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(voc / "JPEGImages" / "2008_c.jpg", exif=exif)
    assert VOCSegmentation(root=voc, split="val").test_sample(0)["image"].shape == (20, 30, 3)


@pytest.mark.parametrize("text, ids", [
    ("2007_b\r\n2007_a\r\n", ["2007_b", "2007_a"]),
    ("\n\n  2007_a  \n\t\n2007_b", ["2007_a", "2007_b"]),
    ("\ufeff2007_a\n", ["2007_a"]),
    ("/JPEGImages/2007_b.jpg /SegmentationClass/2007_b.png\n"
     "JPEGImages/2007_a.jpg  SegmentationClass/2007_a.png\n",
     ["2007_b", "2007_a"]),
])
def test_list_formats(voc, text, ids):
    list_file(voc).write_bytes(text.encode())
    data = VOCSegmentation(root=voc)
    assert data.ids == ids
    for k, id in enumerate(ids):
        assert data.test_sample(k)["label"][0, 1] == {"2007_a": 0, "2007_b": 1}[id]


@pytest.mark.parametrize("text, message", [
    ("", "train.txt: the list of split train is empty"),
    ("\r\n \n", "train.txt: the list of split train is empty"),
    ("2007_a\n2007_b\n\n2007_a\n", r"train.txt, line 4: 2007_a is listed twice \(first in line 1\)"),
    ("2007_a\n2007_b -1\n", "train.txt, line 2: '2007_b -1'; expected an id"),
    ("../../etc/passwd\n", "line 1: '../../etc/passwd'; expected an id"),
    ("a b c\n", "line 1"),
    ("2007_a\n2007_x\n2007_y\n", r"JPEGImages/2007_x.jpg: picture does not exist.*2 of 3 pictures"),
    ("/JPEGImages/2007_a.jpg /Nowhere/2007_a.png\n", "Nowhere: cannot read the label folder"),
])
def test_bad_lists(voc, text, message):
    list_file(voc).write_text(text)
    with pytest.raises(DataError, match=message):
        VOCSegmentation(root=voc)


def test_list_that_is_not_text(voc):
    list_file(voc).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="train.txt: list is not UTF-8 text"):
        VOCSegmentation(root=voc)


def test_unknown_split_and_missing_list(voc):
    with pytest.raises(DataError, match=r"unknown split 'tranval' \(did you mean trainval\?\); there are"):
        VOCSegmentation(root=voc, split="tranval")
    list_file(voc, "test").unlink()
    with pytest.raises(DataError, match="test.txt: the list of split test does not exist"):
        VOCSegmentation(root=voc, split="test")
    with pytest.raises(DataError, match="unknown split"):
        VOCSegmentation(root=voc, split="../Segmentation/train")


def test_own_list(voc):
    list_file(voc, "minival").write_text("2007_b\n")
    assert VOCSegmentation(root=voc, split="minival").ids == ["2007_b"]


def test_missing_label(voc):
    (voc / "SegmentationClass" / "2007_b.png").unlink()
    with pytest.raises(DataError, match="SegmentationClass/2007_b.png: label does not exist.*1 of 2 labels"):
        VOCSegmentation(root=voc)


def test_faults_that_show_on_reading(voc):
    data = VOCSegmentation(root=voc)
    write_index_png(voc / "SegmentationClass" / "2007_b.png", np.zeros((30, 20), int), voc_palette())
    with pytest.raises(DataError, match="2007_b.png: label is 20 x 30, its picture .*2007_b.jpg is 30 x 20"):
        data.train_sample(1, rng(0))
    write_index_png(voc / "SegmentationClass" / "2007_b.png", np.full((20, 30), 21), voc_palette())
    with pytest.raises(DataError, match="2007_b.png: label value 21 at row 0, column 0"):
        data.test_sample(1)
    picture = voc / "JPEGImages" / "2007_a.jpg"
    picture.write_bytes(picture.read_bytes()[:-40])
    with pytest.raises(DataError, match="2007_a.jpg: picture is broken.*(?i:truncated)"):
        data.train_sample(0, rng(0))
    picture.unlink()
    with pytest.raises(DataError, match="2007_a.jpg: picture does not exist"):
        data.test_sample(0)


def test_label_dir(voc):
    (voc / "Mine").mkdir()
    for id in ("2007_a", "2007_b"):
        write_index_png(voc / "Mine" / f"{id}.png", np.full((20, 30), 7), voc_palette())
    for label_dir in ("Mine", str(voc / "Mine")):
        assert (VOCSegmentation(root=voc, label_dir=label_dir).test_sample(1)["label"] == 7).all()


def test_trainaug_needs_its_labels(voc):
    with pytest.raises(DataError, match="SegmentationClassAug.*SBD"):
        VOCSegmentation(root=voc, split="trainaug")


def test_trainaug_from_the_label_files(tmp_path):
    voc = make_voc(tmp_path, {"train": ["a"], "val": ["c"]}, aug=["a", "b", "c", "d"])
    data = VOCSegmentation(root=voc, split="trainaug")
    assert data.ids == ["a", "b", "d"]
    assert [data.test_sample(k)["label"][0, 1] for k in range(3)] == [0, 1, 3]  # grey label files
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(DataError, match="val.txt: list does not exist"):
        VOCSegmentation(root=voc, split="trainaug")


@pytest.mark.parametrize("name", ["trainaug", "train_aug"])
def test_trainaug_from_its_list(tmp_path, name):
    line = {"trainaug": "d\n", "train_aug": "/JPEGImages/d.jpg /SegmentationClassAug/d.png\n"}[name]
    voc = make_voc(tmp_path, {"train": ["a"], "val": ["c"]}, aug=["a", "b", "c", "d"])
    (voc / "SegmentationClass" / "d.png").unlink()
    list_file(voc, name).write_text(line)
    data = VOCSegmentation(root=voc, split="trainaug")
    assert data.ids == ["d"] and data.test_sample(0)["label"][0, 1] == 3


def test_construction_opens_no_picture_and_pickles_small(voc, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a picture was opened")
    monkeypatch.setattr(Image, "open", refuse)
    data = VOCSegmentation(root=voc)
    payload = pickle.dumps(data)
    assert len(payload) < 5000
    assert pickle.loads(payload).ids == data.ids
