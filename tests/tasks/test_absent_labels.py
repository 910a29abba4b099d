"""Parts and kinds of objects that no label has are told too: before training, in evaluations, by `jea data check`."""
import json

import numpy as np
import pytest

from jea.data import SolidParts, write_image
from jea.data.check import check_splits
from jea.errors import DataError
from jea.tasks.detection import Detection
from jea.tasks.part_segmentation import PartSegmentation
from jea.training.loop import train

# -- parts ------------------------------------------------------------------------------------------------------------


def parts_task(**evaluation):
    return PartSegmentation(
        model={"name": "ea_pct_tiny_partseg", "num_classes": 15, "num_categories": 6},
        data={"name": "solid_parts", "num_train": 12, "num_val": 6, "num_points": 64},
        train={"steps": 1, "batch_size": 2, "num_workers": 0},
        eval={"split": "val", "num_workers": 0, "pictures": 0, **evaluation})


@pytest.fixture
def labelled(monkeypatch):
    """labelled(f): the points of a category get the parts f(category, parts)."""
    whole = SolidParts.cloud

    def change(function):
        def cloud(self, index, rng=None):
            points, category, parts, id = whole(self, index, rng)
            return points, category, np.asarray(function(category, parts), np.int32), id
        monkeypatch.setattr(SolidParts, "cloud", cloud)
    return change


def nothing_found(monkeypatch):
    monkeypatch.setattr(PartSegmentation, "probabilities", lambda self, points, categories, seeds: np.full(
        (len(points), 15, points.shape[2]), 1 / 15))


def test_all_parts_are_there(monkeypatch, capsys, tmp_path):
    nothing_found(monkeypatch)
    task = parts_task()
    assert task.loader.batch_size == 2 and len(task.loader.dataset) == 12
    assert not {"absent_classes", "absent_parts"} & set(task.evaluate(tmp_path, progress=False).values)
    assert "no label" not in capsys.readouterr().err


def test_a_part_that_never_occurs_is_told(labelled, monkeypatch, capsys, tmp_path):
    """The chair has its legs (4) labelled as its seat (3): all six categories occur, and one part does not."""
    nothing_found(monkeypatch)
    labelled(lambda category, parts: np.where(parts == 4, 3, parts))
    task = parts_task()
    assert len(task.loader.dataset) == 12
    assert "no label of split train is of part chair legs: scores are over the other 14 of 15 parts" \
        in capsys.readouterr().err
    values = task.evaluate(tmp_path, progress=False).values
    assert values["absent_parts"] == ["chair legs"] and "absent_classes" not in values
    assert "no label of split val is of part chair legs" in capsys.readouterr().err
    report = check_splits(SolidParts, {"num_train": 12, "num_val": 6, "num_points": 64}, ["train", "val"],
                          num_workers=0, shown=False)
    assert report.problems == ["memory: part 4 (chair legs) occurs in no label of split train"]
    assert report.parts[4] == 0 and report.parts.sum() == 18 * 64
    assert any(line.split()[:3] == ["4", "chair", "legs"] for line in report.lines())


def test_a_single_part_stops_before_training(labelled, monkeypatch, tmp_path):
    nothing_found(monkeypatch)
    labelled(lambda category, parts: np.zeros_like(parts))
    whole = SolidParts.cloud
    monkeypatch.setattr(SolidParts, "cloud", lambda self, index, rng=None: whole(self, index // 6 * 6, rng))
    with pytest.raises(DataError, match="memory: all labels of split train are of part table top; table legs, chair "
                                        "back, .* and 4 more never occur, so that there is nothing to tell apart"):
        train(parts_task(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "last.npz").exists()
    with pytest.raises(DataError, match="all labels of split val are of part table top"):
        parts_task().evaluate(tmp_path, progress=False)


def test_one_category_of_several_parts_trains_and_says_so(monkeypatch, capsys, tmp_path):
    """Parts are told apart within one category too; the others are named once, not part by part."""
    nothing_found(monkeypatch)
    whole = SolidParts.cloud
    monkeypatch.setattr(SolidParts, "cloud", lambda self, index, rng=None: whole(self, index // 6 * 6, rng))
    task = parts_task()
    assert len(task.loader.dataset) == 12
    said = "of class chair, lamp, mug, rocket, hammer: scores are over the other 2 of 15 parts"
    assert f"no label of split train is {said}" in capsys.readouterr().err
    values = task.evaluate(tmp_path, progress=False).values
    assert values["absent_classes"] == ["chair", "lamp", "mug", "rocket", "hammer"] and "absent_parts" not in values


# -- objects ----------------------------------------------------------------------------------------------------------

def scenes(folder, classes, *, crowd=(), names=("cat", "dog", "cow"), ids=(1, 3, 4)):
    """Two pictures a split with boxes of these classes, each picture all of them."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        annotations, images = [], []
        for k in range(2):
            rng = np.random.default_rng(k + 2 * (split == "val"))
            write_image(folder / split / f"{k}.png", rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))
            images.append({"id": k + 1, "file_name": f"{k}.png", "height": 64, "width": 64})
            annotations += [{"id": 10 * k + n + 1, "image_id": k + 1, "category_id": ids[c], "area": 400,
                             "bbox": [5 + n, 5, 20, 20], "iscrowd": int(c in crowd)} for n, c in enumerate(classes)]
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": id, "name": name} for id, name in zip(ids, names)]}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def detection(root, classes=3, **data):
    return Detection(
        model={"name": "ea_fasterrcnn_tiny", "num_classes": classes},
        data={"name": "coco_json", "root": str(root), "split": "train", "min_size": 64, "max_size": 64, "masks": False,
              **data},
        train={"steps": 1, "batch_size": 2, "lr": 0.005, "num_workers": 0}, eval={"num_workers": 0, "pictures": 0})


NOTHING = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, np.int64)}


def test_kinds_of_objects_that_never_occur_are_told(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pycocotools")
    task = detection(scenes(tmp_path, (0, 1)))
    assert type(task.loader).__name__ == "GroupedLoader" and len(task.loader.dataset) == 2
    assert "no label of split train is of class cow: scores are over the other 2 of 3 classes" \
        in capsys.readouterr().err
    monkeypatch.setattr(task, "detect", lambda *a: NOTHING)
    values = task.evaluate(tmp_path / "out", progress=False).values
    assert values["absent_classes"] == ["cow"] and list(values)[0] == "box AP"
    assert "no label of split val is of class cow" in capsys.readouterr().err


def test_no_picture_is_read_to_count_objects(tmp_path, monkeypatch):
    task = detection(scenes(tmp_path, (0, 1, 2)))
    monkeypatch.setattr("jea.data.detection.base.read_image", None)
    assert len(task.loader.dataset) == 2


def test_objects_of_a_single_kind_stop_before_training(tmp_path):
    for place, (classes, crowd) in enumerate((((1,), ()), ((1, 2), (2,)))):  # a region of many trains nothing
        root = scenes(tmp_path / str(place), classes, crowd=crowd)
        with pytest.raises(DataError, match="all labels of split train are of class dog; cat, cow never occur.*Take "
                                            "the categories that never occur out of the annotations"):
            train(detection(root), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "last.npz").exists()


def test_scores_of_a_single_kind_of_objects_say_something(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    task = detection(scenes(tmp_path, (1,)))
    monkeypatch.setattr(task, "detect", lambda *a: NOTHING)
    values = task.evaluate(tmp_path / "out", progress=False).values
    assert values["absent_classes"] == ["cat", "cow"] and values["box AP"] == 0


def test_one_class_alone_trains(tmp_path):
    task = detection(scenes(tmp_path, (0,), names=("cat",), ids=(1,)), classes=1)
    assert len(task.loader.dataset) == 2


def test_numbers_that_stand_for_no_category_are_not_missed(tmp_path, capsys):
    """With COCO's own ids class 1 is id 2, which the file does not have."""
    root = scenes(tmp_path, (0, 1, 2))
    task = detection(root, classes=4, keep_ids=True)
    assert len(task.loader.dataset) == 2 and "no label" not in capsys.readouterr().err
    arguments = {"root": str(root), "masks": False, "keep_ids": True}
    report = check_splits(type(task.dataset()), arguments, ["train", "val"], num_workers=0, shown=False)
    assert report.problems == []
    root = scenes(tmp_path / "b", (0, 1))
    report = check_splits(type(task.dataset()), {**arguments, "root": str(root)}, ["train"], num_workers=0, shown=False)
    assert [problem.partition(": ")[2] for problem in report.problems] == ["class 3 (cow) occurs in no label of split "
                                                                           "train"]
