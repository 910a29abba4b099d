"""A folder of pictures and a folder of labels; what all augmented data sets share."""

import numpy as np
import pytest
import yaml
from segmentation_trees import save

from jea.data import DATASETS, DataError, Loader, SegmentationFolder


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


# -- folder pairs -----------------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(["background", "road", "roof"]))
    for split, names in (("train", ("a.jpg", "deep/b.png")), ("val", ("c.jpg",))):
        for k, name in enumerate(names):
            save(tmp_path / "images" / split / name, np.full((6, 8, 3), 40 * k, np.uint8))
            label = np.full((6, 8), k, np.uint8)
            label[0] = 255
            save((tmp_path / "labels" / split / name).with_suffix(".png"), label)
    save(tmp_path / "images/test/d.png", np.zeros((6, 8, 3), np.uint8))
    return tmp_path


def test_folder_pair(folder):
    data = SegmentationFolder(root=folder)
    assert data.ids == ["a", "deep/b"] and data.class_names == ("background", "road", "roof") and data.num_classes == 3
    assert data.background == 0 and tuple(data.palette[1]) == (128, 0, 0)  # VOC's colours
    assert (data.test_sample(1)["label"][1:] == 1).all() and (data.test_sample(1)["label"][0] == 255).all()
    assert SegmentationFolder(root=folder, split="test").test_sample(0)["label"] is None
    assert DATASETS["segmentation_folder"] is SegmentationFolder


def test_folder_with_lists_and_colours(folder, tmp_path):
    (folder / "classes.yaml").write_text("road: [128, 64, 128]\nroof: [0, 1, 2]\n")
    (folder / "few.txt").write_text("train/deep/b\n\nval/c\n")
    data = SegmentationFolder(root=folder, split="few")
    assert data.ids == ["train/deep/b", "val/c"] and data.background is None
    assert data.palette[:2].tolist() == [[128, 64, 128], [0, 1, 2]]
    assert (data.test_sample(1)["label"][1:] == 0).all()
    (folder / "bad.txt").write_text("train/a\ntrain/x\n")
    with pytest.raises(DataError, match="bad.txt, line 2: 'train/x' has no picture in"):
        SegmentationFolder(root=folder, split="bad")
    with pytest.raises(DataError, match="no split 'trian': there is no folder .*images/trian"):
        SegmentationFolder(root=folder, split="trian")


def test_a_list_of_classes_of_which_some_have_colours(folder):
    (folder / "classes.yaml").write_text("- background\n- road: [128, 64, 129]\n- 3")
    names, palette = SegmentationFolder.legend(root=folder)
    assert names == ("background", "road", "3")
    assert palette[:3].tolist() == [[0, 0, 0], [128, 64, 129], [0, 128, 0]]


@pytest.mark.parametrize("text, said", [
    ("a: [1, 2]", "the colour of a is"), ("- a\n- a", "class names must be different"),
    ("just text", "expected a list of 1 to 255"),
    ("- a\n- b: red", "the colour of b is 'red'"), ("- a\n- [b]", "different pieces of text"),
    ("- a\n- a: [1, 2, 3]", "class names must be different"),
    ("- {a: [1, 2, 3], b: [1, 2, 3]}", "different pieces of text"),
    ("[", "not valid YAML"), ("[]", "expected a list"), ("a: [0, 0, 256]", "whole numbers from 0 to 255"),
])
def test_class_lists(folder, text, said):
    (folder / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        SegmentationFolder(root=folder)


def test_folder_faults(folder):
    save(folder / "images/train/a.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match="a.png: .*images/train/a.jpg has the same name"):
        SegmentationFolder(root=folder)
    (folder / "classes.yaml").unlink()
    with pytest.raises(DataError, match="classes.yaml: cannot read the list of classes"):
        SegmentationFolder(root=folder)


@pytest.mark.parametrize("settings, said", [
    ({"scales": (1.0,), "scale_range": (0.5, 2)}, "both scales and scale_range"),
    ({"scales": ()}, "one or more positive"), ({"scale_range": (2, 1)}, "0 < low <= high"),
    ({"fit": (0, 5)}, "expected two sides"), ({"crop_size": 0}, "at least 1"),
    ({"max_class_share": 0}, "0 < share <= 1"),
])
def test_augmentation_settings(folder, settings, said):
    with pytest.raises(DataError, match=said):
        SegmentationFolder(root=folder, **settings)


def test_training_batches_with_all_of_the_augmentation(folder):
    data = SegmentationFolder(root=folder, crop_size=9, scale_range=(0.5, 2.0), fit=(16, 12), max_class_share=0.75,
                              photometric=True)
    with Loader(data, batch_size=2, seed=3, num_workers=1) as loader, Loader(data, batch_size=2, seed=3) as same:
        batch, again = next(iter(loader.epoch(0))), next(iter(same.epoch(0)))
    assert batch["image"].shape == (2, 3, 9, 9) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (2, 9, 9) and batch["label"].dtype == np.int32
    assert set(np.unique(batch["label"])) <= {0, 1, 255}
    assert all(np.array_equal(batch[key], again[key]) for key in batch)


def test_without_photometric_it_is_vocs_augmentation(folder):
    from jea.data.views import crops as T
    data = SegmentationFolder(root=folder, crop_size=7)
    sample, raw = data.train_sample(1, rng(5)), data.test_sample(1)
    image, label = T.train_augment(T.normalise(raw["image"]), raw["label"], rng(5), crop_size=7)
    assert np.allclose(sample["image"], image.transpose(2, 0, 1), atol=1e-5) and np.array_equal(sample["label"], label)
