"""`jea data check`: planted faults are found, each once, and a sound data set has none."""
import re

import numpy as np
import pytest
import yaml
from segmentation_trees import make_cityscapes, save

from jea.commands import cli, test
from jea.data import DataError, SegmentationFolder, VOCSegmentation, make_shapes
from jea.data.check import check_splits


def picture(k, size=(6, 8)):
    return np.random.default_rng(k).integers(0, 255, (*size, 3), np.uint8)


@pytest.fixture
def sound(tmp_path):
    (tmp_path / "classes.yaml").write_text("[background, road, roof]")
    for split, count in (("train", 4), ("val", 2)):
        for k in range(count):
            save(tmp_path / f"images/{split}/{k}.png", picture(k + 10 * count))
            label = np.full((6, 8), k % 3, np.uint8)
            label[0, :2] = 255
            save(tmp_path / f"labels/{split}/{k}.png", label)
    return tmp_path


def check(root, cls=SegmentationFolder, splits=("train", "val"), **arguments):
    return check_splits(cls, {"root": str(root), **arguments}, splits, num_workers=0, shown=False)


def test_a_sound_data_set(sound):
    report = check(sound)
    assert report.problems == [] and report.pictures == {"train": 4, "val": 2}
    assert report.sizes == {(6, 8): 6}
    assert report.labels.tolist() == [46 * 3, 46 * 2, 46] and report.pictures_with.tolist() == [3, 2, 1]
    assert report.ignored == 12
    text = "\n".join(report.lines())
    assert "no problems" in text and re.search(r"1 +road +2 +92 +33.33%", text) and "1 sizes, from 8 x 6" in text


def plant(root):
    """Twelve faults; returns what must be said of each."""
    images, labels = root / "images/train", root / "labels/train"
    for k in range(10, 20):
        save(images / f"{k}.png", picture(k))
        save(labels / f"{k}.png", np.ones((6, 8), np.uint8))
    (labels / "10.png").unlink()
    (images / "11.png").unlink()
    (images / "12.png").write_bytes((images / "12.png").read_bytes()[:-40])
    (images / "13.png").write_bytes(b"")
    save(labels / "14.png", np.full((6, 8), 3, np.uint8))
    save(labels / "15.png", np.ones((8, 6), np.uint8))
    save(labels / "16.png", picture(1))
    (labels / "17.png").write_text("<html>not found</html>")
    save(labels / "18.png", np.full((6, 8), 255, np.uint8))
    save(images / "19.jpg", picture(99))
    save(root / "images/val/9.png", picture(19))
    save(root / "labels/val/9.png", np.zeros((6, 8), np.uint8))
    save(labels / "2.png", np.zeros((6, 8), np.uint8))  # the only one with "roof"
    return [r"10\.png: has no label", r"labels/train/11\.png: belongs to no picture",
            r"images/train/12\.png: picture is broken", r"13\.png: picture is empty",
            r"14\.png: label value 3 at row 0", r"15\.png: label is 6 x 8, its picture",
            r"16\.png: label is a colour picture", r"17\.png: not a label", r"18\.png: all pixels are ignored",
            r"19\.png: .*19\.jpg has the same name", r"images/val/9\.png \(split val\): is the same picture as",
            r"class 2 \(roof\) occurs in no label of split train"]


def test_planted_faults_are_found(sound):
    wanted = plant(sound)
    # 19.jpg stands for its pair, so that 19.png's content, which val has too, must be the one that is read.
    (sound / "images/train/20.png").write_bytes((sound / "images/train/19.png").read_bytes())
    save(sound / "labels/train/20.png", np.ones((6, 8), np.uint8))
    problems = check(sound).problems
    for pattern in wanted:
        assert sum(bool(re.search(pattern, problem)) for problem in problems) == 1, (pattern, problems)
    assert len(problems) == len(wanted) == 12, "\n".join(problems)


def test_command(sound, tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({
        "task": "segmentation", "model": {"name": "eanet_tiny", "num_classes": 3}, "train": {"steps": 1},
        "data": {"name": "segmentation_folder", "root": str(sound)}, "eval": {"split": "val"}}))
    assert cli.main(["data", "check", str(config)]) == 0
    said = capsys.readouterr()
    assert "4 pictures in split train\n2 pictures in split val" in said.out and "no problems" in said.out
    (sound / "images/val/0.png").write_bytes(b"")
    assert cli.main(["data", "check", str(config), "--split", "val", "--num-workers", "0"]) == 1
    assert "problem: " in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path / "no.yaml")]) == 2
    assert "no such config" in capsys.readouterr().err


def test_clouds_are_called_clouds(tmp_path, capsys):
    config = "point_classification_ea_pct_tiny_solids"
    assert cli.main(["data", "check", config, "--num-workers", "0", "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "400 clouds in split val\n512 to 512 points in a cloud" in said and "no problems" in said
    assert re.search(r"class +clouds\n", said) and "picture" not in said
    assert test.main(["--config", config, "--dry-run"]) == 0
    assert "data: 4000 clouds in" in capsys.readouterr().err


def test_other_layouts(tmp_path):
    make_cityscapes(tmp_path / "city", train=2, val=1, test=0)
    from jea.data import Cityscapes
    (tmp_path / "city/gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png").unlink()
    problems = check(tmp_path / "city", Cityscapes).problems
    assert sum("has no label" in problem for problem in problems) == 1
    assert sum("occurs in no label of split train" in problem for problem in problems) >= 10
    root = make_shapes(tmp_path / "shapes", num_train=3, num_val=2, num_test=1)
    assert not [p for p in check(root, VOCSegmentation, num_classes=7).problems if "occurs in no label" not in p]
    with open(root / "ImageSets/Segmentation/train.txt", "a") as file:
        file.write("train_0000\nnot there\ntrain_0099\n")
    (root / "SegmentationClass/train_0001.png").unlink()
    problems = check(root, VOCSegmentation, num_classes=7).problems
    for said in ("train_0000 is listed twice", "'not there'; expected an id", "train_0099.jpg: picture does not exist",
                 "train_0099.png: label does not exist", "train_0001.png: label does not exist"):
        assert sum(said in problem for problem in problems) == 1, (said, problems)


def test_classification(tmp_path):
    from jea.data import ImageFolder
    for k in range(3):
        save(tmp_path / f"train/{'ab'[k % 2]}/{k}.png", picture(k))
    (tmp_path / "train/a/0.png").write_bytes(b"x")
    report = check(tmp_path, ImageFolder, splits=("train",))
    assert any("train/a/0.png" in problem for problem in report.problems)
    assert report.pictures_with.tolist() == [1, 1] and "pixels" not in report.lines()[2]


def test_a_fault_of_the_whole_data_set_is_said_once(tmp_path):
    report = check(tmp_path / "nowhere", VOCSegmentation)
    assert len(report.problems) == 1 and "no VOC data there" in report.problems[0]


def test_impossible_number_of_workers(sound):
    with pytest.raises(DataError, match="num_workers is -1; expected 0 or more"):
        check_splits(SegmentationFolder, {"root": str(sound)}, ["train"], num_workers=-1)


def masks(root, values, classes="[background, object]"):
    (root / "classes.yaml").write_text(classes)
    for k in range(3):
        save(root / f"images/train/{k}.png", picture(k))
        label = np.zeros((6, 8), np.uint8)
        label[1:4, 2:6] = values[k % len(values)]
        save(root / f"labels/train/{k}.png", label)
    return check(root, splits=("train",)).problems


def test_masks_of_0_and_255_are_told(tmp_path):
    never, suggestion = masks(tmp_path, [255])
    assert "class 1 (object) occurs in no label of split train" in never
    assert "25.0% of the pixels of split train are 255, which means ignored, while object never occurs" in suggestion
    assert "is 255 the object? Then write its class instead (1)" in suggestion
    # The way that the message names mends it.
    from jea.data import read_label, voc_palette, write_index_png
    command = re.search(r"write_index_png\(.*\)", suggestion).group()
    for k in range(3):
        path = tmp_path / f"labels/train/{k}.png"
        exec(command, {"path": path, "read_label": read_label, "voc_palette": voc_palette,
                       "write_index_png": write_index_png})
    report = check(tmp_path, splits=("train",))
    assert report.problems == [] and report.labels.tolist() == [36 * 3, 12 * 3]


def test_of_three_classes_only_one_occurs(tmp_path):
    *never, suggestion = masks(tmp_path, [255], "[a, b, c]")
    assert len(never) == 2 and "while b or c never occurs" in suggestion


def test_a_void_border_is_no_object(tmp_path):
    assert masks(tmp_path, [1, 2], "[a, b, c]") == []
    assert len(masks(tmp_path, [1], "[a, b, c]")) == 1  # c never occurs, and nothing is 255
