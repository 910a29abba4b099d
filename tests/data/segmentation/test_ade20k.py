"""ADE20K on a small tree in the published layout."""
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from segmentation_trees import make_ade20k, save

from jea.data import ADE20K, DataError


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


# -- ADE20K -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    root = tmp_path_factory.mktemp("ade")
    return root, make_ade20k(root)


def test_ade20k_labels_are_the_files_minus_one(ade):
    root, labels = ade
    for place in (root, root / "ADEChallengeData2016"):
        data = ADE20K(root=place, split="val")
        assert data.ids == ["ADE_val_00000001", "ADE_val_00000002"]
        for k, id in enumerate(data.ids):
            sample = data.test_sample(k)
            stored = labels[id].astype(int)
            assert sample["id"] == id and (stored == 0).any() and (stored > 1).any()
            assert np.array_equal(sample["label"], np.where(stored == 0, 255, stored - 1))
            assert sample["image"].shape == (*stored.shape, 3)
    assert len(ADE20K(root=root)) == 4 and len(ADE20K(root=root, split="trainval")) == 6


def test_ade20k_tables():
    assert len(ADE20K.class_names) == len(set(ADE20K.class_names)) == 150 == ADE20K.num_classes
    known = {0: "wall", 1: "building", 7: "bed", 12: "person", 44: "chest of drawers", 89: "television receiver",
             110: "stool", 136: "traffic light", 149: "flag"}
    assert {place: ADE20K.class_names[place] for place in known} == known
    colours = {0: (120, 120, 120), 1: (180, 120, 120), 2: (6, 230, 230), 6: (140, 140, 140), 48: (140, 140, 140),
               99: (255, 112, 0), 100: (143, 255, 0), 149: (92, 0, 255)}
    assert {place: tuple(ADE20K.palette[place]) for place in colours} == colours
    assert ADE20K.palette.shape == (256, 3) and ADE20K.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in ADE20K.palette[:150].tolist()}) == 149  # road and skyscraper share one
    # The whole tables, as in the published code.
    assert zlib.crc32(",".join(ADE20K.class_names).encode()) == 3338853938
    assert zlib.crc32(ADE20K.palette[:150].tobytes()) == 3620555175


def test_ade20k_submission(ade, tmp_path):
    data = ADE20K(root=ade[0] / "ADEChallengeData2016", split="test")
    assert data.ids == ["ADE_test_00000001"] and data.test_sample(0)["label"] is None
    prediction = np.arange(150, dtype=np.uint8).reshape(10, 15)
    file = data.submission.write(tmp_path, data.ids[0], prediction, data.palette)
    stored = Image.open(file)
    assert stored.mode == "L" and np.array_equal(np.array(stored), prediction + 1)
    with zipfile.ZipFile(data.submission.pack(tmp_path, data.ids)) as archive:
        assert archive.namelist() == ["ADE_test_00000001.png"]
        assert archive.read("ADE_test_00000001.png") == file.read_bytes()
    with pytest.raises(DataError, match="split test has no labels to train on"):
        data.train_sample(0, rng(0))


def test_ade20k_faults(ade, tmp_path):
    with pytest.raises(DataError, match="no ADE20K data there.*it is not a folder.*looked for the folders images"):
        ADE20K(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"unknown split 'vall' \(did you mean val\?\); there are train, val, "
                                        r"trainval, .*test"):
        ADE20K(root=ade[0], split="vall")
    root = tmp_path / "ADEChallengeData2016"
    save(root / "images/training/a.jpg", np.zeros((4, 5, 3), np.uint8))
    (root / "annotations/training").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images/training/a.jpg: has no label; expected .*annotations/training/a.png"):
        ADE20K(root=tmp_path)
    save(root / "annotations/training/a.png", np.full((4, 5), 151, np.uint8))
    with pytest.raises(DataError, match="label value 151 at row 0, column 0"):
        ADE20K(root=tmp_path).test_sample(0)
    save(root / "annotations/training/b.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="b.png: belongs to no picture in .*images/training"):
        ADE20K(root=tmp_path)


# -- Cityscapes -----------------------------------------------------------------------------------------------------
