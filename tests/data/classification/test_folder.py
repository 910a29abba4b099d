"""Class folders: ImageNet, and any tree with a folder of pictures per class."""

import numpy as np
import pytest
from PIL import Image

from jea.data import DataError, ImageFolder


def put(path, value=100, size=(8, 6), mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") or isinstance(value, tuple) else (value,) * len(mode)
    Image.new(mode, size, colour).save(path, format)
    return path


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's layout; the class folders are made in another order than the sorted one."""
    for k, wnid in enumerate(("n03000000", "n01440764", "n02000000")):
        for n in (2, 10):
            put(tmp_path / "train" / wnid / f"{wnid}_{n}.JPEG", 40 * k)
        put(tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{k}.JPEG", 40 * k)
    return tmp_path


def test_imagenet_folders(imagenet):
    data = ImageFolder(root=str(imagenet), split="train")
    assert data.class_names == ("n01440764", "n02000000", "n03000000") and data.num_classes == 3 and len(data) == 6
    assert [data.load(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    picture, label = data.load(0)
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8 and (picture == 40).all() and type(label) is int
    assert data.path(0).endswith("n01440764_10.JPEG")  # as text, 10 sorts before 2
    held_out = ImageFolder(root=imagenet, split="val")
    assert len(held_out) == 3 and [held_out.load(i)[0][0, 0, 0] for i in range(3)] == [40, 80, 0]


@pytest.mark.parametrize("folder", ["validation", "valid"])
def test_other_names_of_val(imagenet, folder):
    (imagenet / "val").rename(imagenet / folder)
    assert len(ImageFolder(root=imagenet, split="val")) == 3
    assert len(ImageFolder(root=imagenet, split=folder)) == 3


def test_a_class_without_held_out_pictures_shifts_no_label(imagenet):
    import shutil
    shutil.rmtree(imagenet / "val" / "n01440764")
    data = ImageFolder(root=imagenet, split="val")
    assert data.num_classes == 3 and [data.load(i)[1] for i in range(2)] == [1, 2]


def test_any_tree_and_nested_pictures(tmp_path):
    put(tmp_path / "cat" / "a" / "b" / "x.png", format="PNG")
    put(tmp_path / "dog" / "y.jpg")
    put(tmp_path / ".hidden" / "z.jpg")
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    data = ImageFolder(root=tmp_path, split=None)
    assert data.class_names == ("cat", "dog") and len(data) == 2
    assert ImageFolder(root=tmp_path, split=None, class_names=["Katze", "Hund"]).class_names == ("Katze", "Hund")


def test_kinds_of_files(tmp_path):
    kinds = [("CMYK", 0, "JPEG"), ("L", 77, "JPEG"), ("RGB", 77, "PNG"), ("I;16", 77 * 257, "PNG"), ("RGBA", 77, "PNG")]
    for k, (mode, value, format) in enumerate(kinds):  # PNG inside .JPEG, as in ImageNet
        put(tmp_path / "train" / "c" / f"{k}.JPEG", value, mode=mode, format=format)
    palette = Image.new("P", (8, 6), 3)
    palette.putpalette([77] * 768)
    palette.save(tmp_path / "train" / "c" / "5.JPEG", "PNG")
    data = ImageFolder(root=tmp_path)
    assert len(data) == 6
    for k in range(6):
        picture, _ = data.load(k)
        assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
        assert (picture == (255 if k == 0 else 77)).all(), (k, picture[0, 0])  # CMYK 0 is no ink: white


def test_broken_pictures_name_the_file(imagenet):
    data = ImageFolder(root=imagenet)
    file = imagenet / "train" / "n01440764" / "n01440764_10.JPEG"
    whole = file.read_bytes()
    half = whole[:len(whole) // 2]
    for content, said in ((b"", "empty"), (half, "broken|not a picture"), (b"hello", "not a picture")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"n01440764_10.JPEG: .*({said})"):
            data.load(0)
    file.unlink()
    with pytest.raises(DataError, match="n01440764_10.JPEG: picture does not exist"):
        data.load(0)


def test_trees_that_do_not_fit(imagenet, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ImageFolder(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder test for split test; there are: train, val"):
        ImageFolder(root=imagenet, split="test")
    with pytest.raises(DataError, match="3 class folders; expected 1000"):
        ImageFolder(root=imagenet, num_classes=1000)
    with pytest.raises(DataError, match="class_names has 1 names"):
        ImageFolder(root=imagenet, class_names=["a"])
    (imagenet / "val" / "n09999999").mkdir()
    with pytest.raises(DataError, match="val/n09999999: the training pictures have no class n09999999"):
        ImageFolder(root=imagenet, split="val")
    (imagenet / "train" / "n09999999").mkdir()
    with pytest.raises(DataError, match="train/n09999999: no pictures"):
        ImageFolder(root=imagenet)


def test_validation_pictures_that_are_not_sorted_into_classes(tmp_path):
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="val: no class folders; the 1 pictures in it must be sorted into class"):
        ImageFolder(root=tmp_path, split="val")
