"""Classes that occur in no label are told before training and in every evaluation; a single class is an error."""
import json

import numpy as np
import pytest
from PIL import Image

from jea.data import Dataset
from jea.errors import DataError
from jea.tasks.classification import Classification
from jea.tasks.labels import ClassLabels, absent_in_evaluation, check_training_labels
from jea.tasks.segmentation import Segmentation
from jea.training.loop import train


class Labels(Dataset):
    """Samples of given labels; a label of None has none, one of -1 cannot be read."""

    def __init__(self, labels, classes=4):
        self.labels, self.num_classes, self.split, self.read = labels, classes, "train", []
        self.class_names = [f"c{k}" for k in range(classes)]

    def __len__(self):
        return len(self.labels)

    def label_counts(self, index):
        self.read.append(index)
        if self.labels[index] == -1:
            raise DataError("broken")
        return None if self.labels[index] is None else np.bincount([self.labels[index]], minlength=self.num_classes)


def looked(labels, capsys, classes=4, **options):
    data = Labels(labels, classes)
    check_training_labels(ClassLabels(data), num_workers=0, **options)
    return capsys.readouterr().err, data


@pytest.mark.parametrize("labels, said", [
    ([0, 1, 2, 3], ""), ([0, 2, 0, -1], "no label of split train is of class c1, c3: scores are over the other 2 of 4"),
    ([None, 1, 2, None], "of class c0, c3: "), ([None] * 5, ""), ([-1, -1], ""), ([], "")], ids=str)
def test_classes_without_labels_are_told(labels, said, capsys):
    err, _ = looked(labels, capsys)
    assert said in err and bool(said) == bool(err)


def test_a_single_class_stops_before_training(capsys):
    for labels in ([1, 1, 1], [1] * 1000, [1, None, -1]):
        with pytest.raises(DataError, match="memory: all labels of split train are of class c1; c0, c2, c3 never "
                                            "occur, so that there is nothing to tell apart"):
            looked(labels, capsys)
    assert looked([0, 0], capsys, classes=1)[0] == ""


def test_a_rare_class_at_the_end_is_found_though_time_is_up(capsys):
    order = np.random.Generator(np.random.PCG64(0)).permutation(1000)
    labels = [0] * 1000
    labels[order[-1]] = 2
    err, data = looked(labels, capsys, seconds=0)
    assert len(data.read) == 1000 and "split train is of class c1, c3" in err
    labels[order[1]] = 3
    err, data = looked(labels, capsys, seconds=0)
    assert len(data.read) == 2 and "the 2 pictures looked at is of class c1, c2" in err


def test_the_labels_are_looked_at_until_all_classes_were_seen(capsys):
    err, data = looked(list(range(4)) * 500, capsys)
    assert err == "" and len(data.read) < 60


def test_of_many_classes_some_are_named(capsys):
    err, _ = looked([0, 1], capsys, classes=40)
    assert "c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 and 28 more: scores are over the other 2 of 40 classes" in err


def test_an_evaluation_says_so_and_stops_at_a_single_class(capsys):
    data = ClassLabels(Labels([], 3))
    assert absent_in_evaluation(data, [5, 0, 1], stop=True) == {"absent_classes": ["c1"]}
    assert "no label of split train is of class c1" in capsys.readouterr().err
    assert absent_in_evaluation(data, [5, 2, 1], stop=True) == absent_in_evaluation(data, [0, 0, 0], stop=True) == {}
    with pytest.raises(DataError, match="all labels of split train are of class c0"):
        absent_in_evaluation(data, [5, 0, 0], stop=True)
    assert absent_in_evaluation(data, [5, 0, 0], stop=False) == {"absent_classes": ["c1", "c2"]}


# -- in the tasks -----------------------------------------------------------------------------------------------------

def masks(folder, values, *, splits=("train", "val")):
    """Pictures with a square of the last value on the first one."""
    rng = np.random.default_rng(0)
    for split in splits:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 255, (70, 70, 3), np.uint8)).save(folder / "images" / split / f"{k}.jpg")
            label = np.full((70, 70), values[0], np.uint8)
            label[20:50, 20:50] = values[1]
            Image.fromarray(label).save(folder / "labels" / split / f"{k}.png")
    (folder / "classes.yaml").write_text("[background, road, sky]\n")
    return folder


def segmentation(folder):
    return Segmentation(model={"name": "eanet_tiny", "num_classes": 3},
                        data={"name": "segmentation_folder", "root": str(folder), "crop_size": 65},
                        train={"steps": 1, "batch_size": 2, "num_workers": 0, "log_every": 1},
                        eval={"num_workers": 0, "pictures": 0})


def test_masks_of_0_and_255_do_not_train(tmp_path):
    with pytest.raises(DataError, match="all labels of split train are of class background; road, sky never occur.*"
                                        "if 255 is the object, write 1 instead"):
        train(segmentation(masks(tmp_path / "data", (0, 255))), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "last.npz").exists()
    with pytest.raises(DataError, match="all labels of split val are of class background"):
        segmentation(tmp_path / "data").evaluate(tmp_path / "out", progress=False)


def test_a_class_that_is_in_no_mask_is_told_and_stands_in_the_result(tmp_path, capsys):
    result = train(segmentation(masks(tmp_path / "data", (0, 1))), tmp_path / "run", progress=False)
    said = capsys.readouterr().err
    assert "no label of split train is of class sky" in said and "no label of split val is of class sky" in said
    assert result["absent_classes"] == ["sky"]
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert entry["evaluation"]["absent_classes"] == ["sky"]


def test_pictures_of_one_class_do_not_train(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 8), ("dog", 0)):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for k in range(count):
            picture = rng.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / "train" / name / f"{k}.png")
    task = Classification(model={"name": "eamlp_tiny", "num_classes": 2, "img_size": 32},
                          data={"name": "image_folder", "root": str(tmp_path / "data"), "split": "train"},
                          train={"steps": 1, "batch_size": 2, "num_workers": 0}, eval={"split": "train"})
    with pytest.raises(DataError, match="all labels of split train are of class cat; dog never occurs|no pictures"):
        train(task, tmp_path / "run", progress=False)
