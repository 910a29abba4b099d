"""Cityscapes on a small tree in the published layout."""
import zipfile

import numpy as np
import pytest
from PIL import Image
from segmentation_trees import make_cityscapes, save

from jea.data import Cityscapes, DataError


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    return root, make_cityscapes(root)


# The published table of the data set's scripts: id -> train id, where not void
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}


def test_cityscapes_label_ids(cityscapes, tmp_path):
    root, labels = cityscapes
    data = Cityscapes(root=root, split="val")
    assert data.ids == ["frankfurt_000000_000019", "frankfurt_000001_000019"]
    sample = data.test_sample(1)
    wanted = np.vectorize(lambda id: TRAIN_IDS.get(id, 255))(labels[data.ids[1]])
    assert np.array_equal(sample["label"], wanted) and (wanted == 255).sum() >= 5 and len(np.unique(wanted)) > 2
    # every id that a file can have
    for id in range(34):
        save(tmp_path / "gtFine/train/x/x_000000_000000_gtFine_labelIds.png", np.full((2, 2), id, np.uint8))
        save(tmp_path / "leftImg8bit/train/x/x_000000_000000_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
        assert (Cityscapes(root=tmp_path).test_sample(0)["label"] == TRAIN_IDS.get(id, 255)).all()
    save(tmp_path / "gtFine/train/x/x_000000_000000_gtFine_labelIds.png", np.full((2, 2), 34, np.uint8))
    with pytest.raises(DataError, match="label value 34 at row 0, column 0"):
        Cityscapes(root=tmp_path).test_sample(0)


def test_cityscapes_train_ids_and_splits(cityscapes, tmp_path):
    root, labels = cityscapes
    assert len(Cityscapes(root=root)) == 4 and len(Cityscapes(root=root, split="trainval")) == 6
    with pytest.raises(DataError, match=r"has no label; expected .*_gtFine_labelTrainIds.png"):
        Cityscapes(root=root, labels="labelTrainIds")
    with pytest.raises(DataError, match="labels is 'ids'; expected labelIds or labelTrainIds"):
        Cityscapes(root=root, labels="ids")
    with pytest.raises(DataError, match="unknown split 'x'"):
        Cityscapes(root=root, split="x")
    name = "x_000000_000000"
    save(tmp_path / f"cityscapes/leftImg8bit/val/x/{name}_leftImg8bit.png", np.zeros((1, 20, 3), np.uint8))
    save(tmp_path / f"cityscapes/gtFine/val/x/{name}_gtFine_labelTrainIds.png", np.r_[0:19, 255].astype(np.uint8)[None])
    data = Cityscapes(root=tmp_path, split="val", labels="labelTrainIds")
    assert data.test_sample(0)["label"].tolist() == [[*range(19), 255]]


def test_cityscapes_names_and_colours():
    assert len(Cityscapes.class_names) == 19
    assert Cityscapes.class_names[:3] == ("road", "sidewalk", "building") and Cityscapes.class_names[18] == "bicycle"
    assert tuple(Cityscapes.palette[13]) == (0, 0, 142) and tuple(Cityscapes.palette[0]) == (128, 64, 128)


def test_cityscapes_submission_is_in_label_ids(cityscapes, tmp_path):
    data = Cityscapes(root=cityscapes[0], split="test")
    assert data.ids == ["berlin_000000_000019"] and data.test_sample(0)["label"] is None
    prediction = np.arange(19, dtype=np.uint8)[None]
    file = data.submission.write(tmp_path, data.ids[0], prediction, data.palette)
    stored = Image.open(file)
    assert stored.mode == "L" and np.array(stored)[0].tolist() == sorted(TRAIN_IDS)
    archive = data.submission.pack(tmp_path, data.ids)
    first = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["berlin_000000_000019.png"]
    assert data.submission.pack(tmp_path, data.ids).read_bytes() == first
