"""Lists of data sets: odd lines are told with their number, whatever is in them."""
import os
import time

import numpy as np
import pytest

from jea.data import DataError, SegmentationFolder, VOCSegmentation, make_shapes, write_image
from jea.data.files.lists import read_lines, read_list
from jea.data.segmentation.folder import read_classes


@pytest.mark.parametrize("data, said", [
    (b"", "the list is empty"), (b"\n \n", "the list is empty"), (b"a\nb\na\n", "line 3: a is listed twice"),
    (b"a\n../b\n", "line 2: '../b'; expected a name"), (b"a\nb\0c\n", r"line 2: 'b\\x00c'; expected a name"),
    (b"a\n\x1b[31m\n", r"line 2: '\\x1b\[31m'"), (b"a\n\xff\n", "not UTF-8 text: byte 0xff in line 2"),
    (b".hidden\n", "line 1: '.hidden'"),
])
def test_lists_that_are_none(tmp_path, data, said):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_list(tmp_path / "a.txt")


def test_lists_are_read_in_linear_time(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"{k}\n" for k in range(200_000)) + "199999\n")
    started = time.process_time()
    with pytest.raises(DataError, match="line 200001: 199999 is listed twice"):
        read_list(tmp_path / "a.txt")
    assert time.process_time() - started < 5


def test_lines_of_any_system(tmp_path):
    for text in (b"\xef\xbb\xbfa\r\nb c\r\n", b"a\rb c", b" a \nb c\n"):
        (tmp_path / "a.txt").write_bytes(text)
        assert list(filter(None, read_lines(tmp_path / "a.txt"))) == ["a", "b c"]
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(DataError, match="list is a pipe"):
        read_lines(tmp_path / "p.txt")


SPOILERS = [b"\0", b"\xff", b"\n", b" ", b"/", b"..", b"\x1b[2J", b"9" * 3000, "\u2028".encode(), b"\t", b".jpg", b"\\"]


def test_damaged_lists_of_voc(tmp_path):
    root = make_shapes(tmp_path / "shapes", num_train=3, num_val=2, num_test=1)
    path, random = root / "ImageSets/Segmentation/train.txt", np.random.default_rng(0)
    sound, refused = path.read_bytes(), 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(len(data)))
            data[place:place + int(random.integers(0, 3))] = SPOILERS[int(random.integers(len(SPOILERS)))]
        path.write_bytes(bytes(data))
        try:
            voc = VOCSegmentation(root=root, split="train", num_classes=7)
            for k in range(len(voc)):
                voc.test_sample(k)
        except DataError as error:
            refused += 1
            assert "\0" not in str(error) and "\x1b" not in str(error)
    assert refused > 100


def test_hidden_files_beside_vocs_augmented_labels(tmp_path):
    from jea.data import voc_palette, write_index_png
    root = make_shapes(tmp_path / "shapes", num_train=3, num_val=2, num_test=1)
    aug = root / "SegmentationClassAug"
    aug.mkdir()
    for name in ("train_0000", "train_0001", "val_0000"):
        write_index_png(aug / f"{name}.png", np.zeros((4, 4), np.uint8), voc_palette())
    (aug / "._train_0000.png").write_bytes(b"\0\5\x16\7")
    (aug / ".DS_Store").write_bytes(b"x")
    assert VOCSegmentation(root=root, split="trainaug", num_classes=7).ids == ["train_0000", "train_0001"]


@pytest.mark.parametrize("text, names", [
    ("- yes\n- no\n- on\n", ("yes", "no", "on")), ("- 1\n- 007\n- 1e3\n", ("1", "007", "1e3")), ("- null\n- ~\n",
                                                                                                 ("null", "~")),
    ("yes: [1, 2, 3]\n2026-01-01: [4, 5, 6]\n", ("yes", "2026-01-01")), ("[a, 'b c', \"\u8def\"]", ("a", "b c",
                                                                                                    "\u8def")),
])
def test_names_are_what_is_written(tmp_path, text, names):
    (tmp_path / "classes.yaml").write_text(text, encoding="utf-8")
    assert read_classes(tmp_path / "classes.yaml")[0] == names


@pytest.mark.parametrize("text, said", [
    ("- a\n-\n", "different pieces of text"), ("- \"a\\x1b[2J\"\n", "different pieces of text"), ("a: b",
                                                                                                  "the colour of a is "
                                                                                                  "'b'"),
    ("- a: [1, 2, 1.5]", "the colour of a"), ("- a: [1, 2, -1]", "the colour of a"), ("a: [1, 2, 999]", "the colour of "
                                                                                                        "a"),
    ("- " * 900, "nested deeper"), ("x: &a [*a]", "alias inside"), (f"- {'9' * 5000}\n- {'9' * 5000}",
                                                                    "different pieces"),
    ("? [a]\n: b", "unhashable key"), ("a: 1\na: 2", "the key 'a' is there twice"), ("- [a]\n", "different pieces of "
                                                                                                "text"),
])
def test_class_lists_that_are_none(tmp_path, text, said):
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_classes(tmp_path / "classes.yaml")
    assert len(str(caught.value)) < 1000


def test_a_list_of_a_pair_of_folders_with_odd_lines(tmp_path):
    (tmp_path / "classes.yaml").write_text("[a, b]")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images/1.png", np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "train.txt").write_bytes(b"1\n\x00x\n")
    with pytest.raises(DataError, match=r"line 2: '\\x00x' has no picture"):
        SegmentationFolder(root=tmp_path)
