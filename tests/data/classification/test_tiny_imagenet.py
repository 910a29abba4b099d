"""Tiny-ImageNet, on a tiny tree in the published layout."""

import pytest
from PIL import Image

from jea.data import DataError, TinyImageNet

WNIDS = ("n02124075", "n01443537", "n04067472")


def put(path, value=100, size=(8, 6), mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") or isinstance(value, tuple) else (value,) * len(mode)
    Image.new(mode, size, colour).save(path, format)
    return path


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(WNIDS):
        for n in range(2):
            put(root / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", 50 * k, (64, 64), mode="L" if n else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for k, wnid in ((0, WNIDS[2]), (1, WNIDS[0])):
        put(root / "val" / "images" / f"val_{k}.JPEG", 90 + k, (64, 64))
    (root / "val" / "val_annotations.txt").write_text(
        f"val_0.JPEG\t{WNIDS[2]}\t0\t32\t44\t62\nval_1.JPEG\t{WNIDS[0]}\t52\t55\t57\t59\n")
    put(root / "test" / "images" / "test_0.JPEG", 1, (64, 64))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn9\tentity\n")
    return root


@pytest.mark.parametrize("up", [0, 1])
def test_tiny_imagenet_as_published(tiny, up):
    data = TinyImageNet(root=str([tiny, tiny.parent][up]))
    assert data.wnids == ("n01443537", "n02124075", "n04067472") and data.num_classes == 3
    assert data.class_names == ("goldfish", "Egyptian cat", "n04067472")
    assert [data.load(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [data.load(i)[0][0, 0].tolist() for i in (1, 2)] == [[50] * 3, [0] * 3]
    assert data.load(1)[0].shape == (64, 64, 3)  # a grey file
    held_out = TinyImageNet(root=tiny, split="val")
    assert [(held_out.load(i)[1], int(held_out.load(i)[0][0, 0, 0])) for i in range(2)] == [(2, 90), (1, 91)]


def test_tiny_imagenet_as_class_folders(tmp_path):
    for part in ("train", "valid"):
        for wnid in WNIDS:
            put(tmp_path / part / wnid / "x.JPEG", size=(64, 64))
    assert len(TinyImageNet(root=tmp_path)) == 3
    held_out = TinyImageNet(root=tmp_path, split="val")
    assert [held_out.load(i)[1] for i in range(3)] == [0, 1, 2] and held_out.class_names == tuple(sorted(WNIDS))


def test_faults_of_tiny_imagenet(tiny, tmp_path):
    annotations = tiny / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole + "val_2.JPEG\tn00000000\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="val_annotations.txt, line 3: 'val_2.JPEG"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_text(whole + f"val_2.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="val_2.JPEG: picture does not exist, but .*val_annotations.txt lists it"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="val_annotations.txt: list is not UTF-8 text"):
        TinyImageNet(root=tiny, split="val")
    with pytest.raises(DataError, match="test pictures have no labels"):
        TinyImageNet(root=tiny, split="test")
    with pytest.raises(DataError, match="elsewhere: no Tiny-ImageNet there"):
        TinyImageNet(root=tmp_path / "elsewhere")
