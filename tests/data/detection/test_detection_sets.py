"""Data sets of detection: resizing as upstream has it, samples, batches, checks."""
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from jea.data import COCODetection, COCOJson, VOCDetection, write_image
from jea.data.check import check_splits
from jea.data.detection import resizing
from jea.data.detection.grouping import GroupedLoader
from jea.data.detection.scenes import CLASSES, ShapeScenes, make_scenes
from jea.errors import DataError

FOLDER = Path(__file__).parents[2] / "fixtures" / "detection"


@pytest.mark.parametrize("style, column", (("torchvision", 2), ("mmdet", 4), ("detectron2", 6)))
def test_sizes_are_upstreams(style, column):
    sizes = np.load(FOLDER / "det_ops.npz")["resize/sizes"].astype(int)
    for row in sizes:
        assert resizing.new_size(row[0], row[1], 800, 1333, style) == tuple(row[column:column + 2])


@pytest.mark.parametrize("name", ("tv_maskrcnn_r50_fpn", "mm_maskrcnn_r50_fpn"))
def test_prepared_pictures_are_upstreams(name):
    sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]
    import det_recipe
    import recipe
    manifest, arrays = json.loads((FOLDER / f"{name}.json").read_text()), np.load(FOLDER / f"{name}.npz")
    inputs, style = det_recipe.inputs(manifest), "mmdet" if name.startswith("mm") else "torchvision"
    sizes = [resizing.new_size(*inputs[f"raw{k}"].shape[:2], 96, 160, style) for k in range(2)]

    def probe(what, array):
        return array.reshape(-1)[recipe.sample_indices(f"probe:{what}", array.size, arrays[what].size)]
    batch = resizing.padded([resizing.prepared(inputs[f"raw{k}"], size, style) for k, size in enumerate(sizes)], 32)
    assert list(batch.shape[2:]) == arrays["raw/padded"].tolist()
    if style == "torchvision":
        assert sizes == [tuple(size) for size in arrays["raw/sizes"].tolist()]
        away = np.abs(probe("raw/x", batch) - arrays["raw/x"]).max() / np.abs(arrays["raw/x"]).max()
        assert away < 3e-5
        return
    for k, size in enumerate(sizes):
        assert size == tuple(arrays[f"raw/sizes_raw{k}"].tolist())
        pixels = probe(f"raw/resized_raw{k}", resizing._fixed_point(inputs[f"raw{k}"], size)).astype(int)
        stored = arrays[f"raw/resized_raw{k}"].astype(int)
        assert np.abs(pixels - stored).max() <= 1 and (pixels != stored).mean() < 0.01


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", counts={"train": 12, "val": 6})


@pytest.fixture
def dataset(scenes):
    return COCOJson(root=scenes, split="train", min_size=160, max_size=160)


def test_scenes_are_a_sound_data_set(scenes):
    report = check_splits(COCOJson, {"root": scenes}, ("train", "val"), num_workers=0, shown=False)
    assert [p for p in report.problems if "occurs in no label" not in p] == []
    assert report.pictures == {"train": 12, "val": 6} and report.label_unit == "boxes"
    assert tuple(report.class_names) == CLASSES


def test_scenes_do_not_change(scenes, tmp_path):
    again = make_scenes(tmp_path / "again", counts={"train": 12, "val": 6})
    name = "annotations/train.json"
    assert (again / name).read_bytes() == (scenes / name).read_bytes()
    with pytest.raises(DataError, match="delete it"):
        ShapeScenes(root=again)  # of another number of pictures


def test_a_training_sample(dataset):
    dataset.flip = 0.0
    plain = dataset.train_sample(2, np.random.default_rng(0))
    dataset.flip = 1.0
    mirrored = dataset.train_sample(2, np.random.default_rng(0))
    assert plain["image"].shape == (3, 160, 160) and plain["image"].dtype == np.float32
    assert np.array_equal(mirrored["image"], plain["image"][:, :, ::-1])
    assert np.array_equal(mirrored["masks"], plain["masks"][:, :, ::-1])
    assert np.allclose(mirrored["boxes"][:, 0], 160 - plain["boxes"][:, 2])
    for sample in (plain, mirrored):
        for box, mask in zip(sample["boxes"], sample["masks"]):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert np.allclose(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_crowds_and_empty_boxes_do_not_train(scenes):
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    first = content["annotations"][0]["image_id"]
    content["annotations"].append(dict(content["annotations"][0], id=9999, iscrowd=0, bbox=[5, 5, 0, 3]))
    del content["annotations"][-1]["segmentation"]
    (scenes / "annotations" / "other.json").write_text(json.dumps(content))
    other = COCOJson(root=scenes, split="other", images="train")
    index = other.instances.ids.index(first)
    assert len(other.objects(index)) == len(other.instances.of(index)) - 2
    truth = other.truth([index])
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert sum(a["iscrowd"] for a in truth["annotations"]) >= 1


def test_pictures_without_boxes_do_not_train_but_are_evaluated(scenes):
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    (scenes / "annotations" / "fewer.json").write_text(json.dumps(content))
    fewer = COCOJson(root=scenes, split="fewer", images="train")
    assert len(fewer) == 12 and len(fewer.for_training()) == 11
    content["annotations"] = []
    (scenes / "annotations" / "none.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no picture of split none"):
        COCOJson(root=scenes, split="none", images="train").for_training()


def test_batches_of_different_pictures(dataset):
    rng = np.random.default_rng(0)
    samples = [dataset.train_sample(k, rng) for k in range(3)]
    samples[1]["image"] = samples[1]["image"][:, :100, :70]
    batch = pickle.loads(pickle.dumps(dataset.collate(samples)))
    assert batch["image"].shape == (3, 3, 160, 160) and batch.size == 3
    assert not batch["image"][1, :, 100:].any() and not batch["image"][1, :, :, 70:].any()
    assert isinstance(batch["boxes"], list) and len(batch["boxes"]) == 3
    assert [p.size for p in batch.parts(3)] == [1, 1, 1]
    dataset.multiple = 128
    assert dataset.collate(samples)["image"].shape == (3, 3, 256, 256)


class Shaped:
    """Only shapes: what the grouping looks at."""

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def shape(self, index):
        return self.shapes[index]


def test_batches_are_grouped_by_shape():
    rng = np.random.default_rng(0)
    shapes = [(10, 20) if rng.random() < 0.6 else (20, 10) for _ in range(101)]
    loader = GroupedLoader(Shaped(shapes), batch_size=8, seed=3)
    order = loader.order(1)
    assert len(order) == len(loader) == 12 and all(len(batch) == 8 for batch in order)
    assert len({i for batch in order for i in batch.tolist()}) == 96
    mixed = [batch for batch in order if len({shapes[i] for i in batch}) > 1]
    assert len(mixed) <= 1
    assert all(np.array_equal(a, b) for a, b in zip(order, loader.order(1)))
    assert not all(np.array_equal(a, b) for a, b in zip(order, loader.order(2)))


def test_ids_of_torchvisions_models(scenes):
    kept = COCOJson(root=scenes, split="train", keep_ids=True)
    assert kept.num_classes == 11 and kept.class_names[0] == CLASSES[0] and "no category" in kept.class_names[1]
    plain = COCOJson(root=scenes, split="train")
    sample = [d.train_sample(0, np.random.default_rng(0))["labels"] for d in (kept, plain)]
    assert np.array_equal(sample[0], 2 * sample[1])


@pytest.mark.parametrize("id", (-3, 0, 10 ** 12))
def test_ids_that_cannot_be_classes(scenes, id):
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    old = content["categories"][0]["id"]
    content["categories"][0]["id"] = id
    for annotation in content["annotations"]:
        annotation["category_id"] = id if annotation["category_id"] == old else annotation["category_id"]
    (scenes / "annotations" / "ids.json").write_text(json.dumps(content))
    assert COCOJson(root=scenes, split="ids", images="train").num_classes == len(CLASSES)
    with pytest.raises(DataError, match="expected 1 to 10000"):
        COCOJson(root=scenes, split="ids", images="train", keep_ids=True)


def test_the_check_makes_no_masks_of_a_size_that_is_only_claimed(scenes, monkeypatch):
    content = json.loads((scenes / "annotations" / "val.json").read_text())
    for image in content["images"]:
        image.update(height=8000, width=8000)
    for annotation in content["annotations"]:
        annotation["segmentation"] = {"size": [8000, 8000], "counts": [32_000_000, 32_000_000]}
    (scenes / "annotations" / "large.json").write_text(json.dumps(content))
    monkeypatch.setattr("jea.data.detection.instances.mask_of_runs", lambda *_: pytest.fail("a mask was made"))
    report = check_splits(COCOJson, {"root": scenes, "images": "val"}, ("large",), num_workers=0, shown=False)
    assert sum("the annotations say 8000 x 8000" in problem for problem in report.problems) == 6


def test_cocos_own_folders(scenes, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    content = json.loads((scenes / "annotations" / "val.json").read_text())
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    del content["annotations"]
    (root / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    for name in ("val2017", "test2017"):
        (root / name).symlink_to(scenes / "val")
    assert len(COCODetection(root=root, split="val")) == 6
    hidden = COCODetection(root=root, split="test-dev")
    assert not hidden.has_truth() and hidden.test_sample(0)["image"].shape[0] == 3
    with pytest.raises(DataError, match="instances_train2017.json"):
        COCODetection(root=root, split="train")


def test_what_is_wrong_is_listed(scenes):
    content = json.loads((scenes / "annotations" / "val.json").read_text())
    content["images"].append({"id": 99, "file_name": "none.jpg", "height": 5, "width": 5})
    content["annotations"][0]["bbox"] = [0, 0, 5, 5]
    (scenes / "annotations" / "wrong.json").write_text(json.dumps(content))
    report = check_splits(COCOJson, {"root": scenes, "images": "val"}, ("wrong",), num_workers=0, shown=False)
    text = "\n".join(report.problems)
    assert "none.jpg: picture does not exist" in text and "its mask leaves its box" in text


@pytest.mark.parametrize("options, said", (
    ({"resize": "cv2"}, "data.resize"), ({"min_size": 0}, "data.min_size"), ({"flip": 2}, "data.flip"),
    ({"multiple": 0}, "data.multiple"), ({"images": "nowhere"}, "no such folder"), ({"split": "tset"}, "tset.json")))
def test_wrong_options(scenes, options, said):
    with pytest.raises(DataError, match=said):
        COCOJson(**{"root": scenes, "split": "train", **options})


XML = """<annotation><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    write_image(tmp_path / "JPEGImages" / "a.jpg", np.zeros((40, 50, 3), np.uint8))
    (tmp_path / "Annotations" / "a.xml").write_text(XML)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return tmp_path


def test_vocs_boxes(voc):
    found = VOCDetection(root=voc, split="train", min_size=40, max_size=50)
    assert found.num_classes == 20 and len(found) == 1
    assert found.objects(0).tolist() == [0] and found.instances.crowd.tolist() == [False, True]
    assert found.corners([0], (40, 50)).tolist() == [[0, 1, 50, 40]]
    sample = found.train_sample(0, np.random.default_rng(0))
    assert sample["masks"].shape == (1, 0, 0) and found.class_names[sample["labels"][0]] == "dog"


@pytest.mark.parametrize("text", ("", "<annotation>", XML.replace("dog", "wolf"), XML.replace("<xmin>1<", "<xmin>x<"),
                                  '<!DOCTYPE a [<!ENTITY b "c">]>' + XML, XML.replace("<width>50", "<width>0")))
def test_broken_annotations_of_voc(voc, text):
    (voc / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match="a.xml"):
        VOCDetection(root=voc, split="train")


def test_names_of_published_sets_are_known_without_their_files():
    names = COCODetection.legend(root="nowhere")
    assert len(names) == 80 == len(set(names)) and (names[0], names[79]) == ("person", "toothbrush")
    by_id = COCODetection.legend(root="nowhere", keep_ids=True)
    assert [by_id[id - 1] for id in (1, 12, 13, 90)] == ["person", "(no category 12)", "stop sign", "toothbrush"]
    assert len(by_id) == 90
    assert tuple(name for name in by_id if not name.startswith("(")) == names
    assert len(VOCDetection.legend(root="nowhere")) == 20 and COCOJson.legend(root="nowhere") == ()
