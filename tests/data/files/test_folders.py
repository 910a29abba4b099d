"""Folders: each is read once, whatever links there are, and what is left out is counted."""
import os
import time

import numpy as np
import pytest

from jea.data import DataError, ImageFolder, SegmentationFolder, list_inputs, write_image
from jea.data.check import check_splits
from jea.data.files.folders import list_files
from jea.data.files.pictures import SUFFIXES


def picture(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((4, 5, 3), value, np.uint8))
    return path


def names(found, top):
    return [os.path.relpath(file, top) for file in found.files]


def test_loops_and_links_out_of_the_tree(tmp_path):
    top, outside = tmp_path / "top", tmp_path / "outside"
    picture(top / "a/1.png")
    picture(top / "b/2.png")
    picture(outside / "deep/3.png")
    (top / "a/loop").symlink_to(top)
    (top / "a/loop2").symlink_to(top / "b")
    (top / "b/loop").symlink_to(top / "a")
    (top / "a/out").symlink_to(outside)
    (outside / "back").symlink_to(top)
    (top / "0first").symlink_to(top / "b")  # comes first by name, yet the real folder is the one that is read
    (top / "b/self").symlink_to(top / "b/self")
    found = list_files(top, (".png",))
    assert names(found, top) == ["a/1.png", "a/out/deep/3.png", "b/2.png"]
    assert sorted(os.path.relpath(link, top) for link, _ in found.repeats) == [
        "0first", "a/loop", "a/loop2", "a/out/back", "b/loop"]
    assert f"{top}/a/loop: leads to {top}, which is read already; it is not read again" in found.notes(top, (".png",))


def test_two_links_to_each_other_end(tmp_path):
    for k in range(12):
        (tmp_path / f"d{k}").mkdir()
        for j in range(12):
            (tmp_path / f"d{k}/l{j}").symlink_to(tmp_path / f"d{j}")
    picture(tmp_path / "d3/x.png")
    started = time.perf_counter()
    found = list_files(tmp_path, (".png",))
    assert names(found, tmp_path) == ["d3/x.png"] and len(found.repeats) == 144 and time.perf_counter() - started < 5
    assert len(found.notes(tmp_path, (".png",))) == 11 and "134 more such links" in found.notes(tmp_path, (".png",))[-1]


def test_what_is_left_out_is_counted(tmp_path):
    for name in ("a.PNG", "b.heic", "c.HEIC", "d.gif", ".e.png", "README", "s/f.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = list_files(tmp_path, SUFFIXES)
    assert names(found, tmp_path) == ["a.PNG", "d.gif"]
    assert found.others == {".heic": 2, "": 1, ".svg": 1} and found.hidden == 1
    lines = found.notes(tmp_path, SUFFIXES)
    assert lines[0].startswith(f"{tmp_path}: 4 files of other types are left out (2 .heic, 1 ")
    assert "read are .jpg" in lines[0]
    assert "1 hidden files" in lines[1]
    assert names(list_files(tmp_path, SUFFIXES, below=False), tmp_path) == ["a.PNG", "d.gif"]
    with pytest.raises(DataError, match="nowhere: cannot read the folder"):
        list_files(tmp_path / "nowhere", SUFFIXES)


def test_inputs_say_what_they_leave_out(tmp_path, caplog):
    for name in ("a.png", "b.heic", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in list_inputs(tmp_path)] == ["a.png", "c.tif"]
    assert "1 files of other types are left out (1 .heic)" in caplog.text
    os.remove(tmp_path / "a.png")
    os.remove(tmp_path / "c.tif")
    with pytest.raises(DataError, match=r"no pictures in this folder, only 1 \.heic; expected files ending in"):
        list_inputs(tmp_path)


@pytest.fixture
def classes(tmp_path):
    for name, value in (("a", 10), ("b", 200)):
        for k in range(2):
            picture(tmp_path / f"train/{name}/{k}.png", value + k)
    return tmp_path


def test_a_loop_in_a_class_folder_gives_it_nothing_of_the_others(classes):
    (classes / "train/a/up").symlink_to(classes / "train")
    (classes / "train/a/beside").symlink_to(classes / "train/b")
    (classes / "train/b/root").symlink_to(classes)
    data = ImageFolder(root=classes)
    assert len(data) == 4 and [data.load(k)[1] for k in range(4)] == [0, 0, 1, 1]
    report = check_splits(ImageFolder, {"root": str(classes)}, ["train"], num_workers=0, shown=False)
    assert report.problems == [] and len(report.notes) == 3 and all("which is read already" in n for n in report.notes)
    assert "note: " in report.lines()[-2]


def test_a_data_set_says_what_it_leaves_out(classes, caplog):
    (classes / "train/a/z.heic").write_bytes(b"x")
    assert len(ImageFolder(root=classes)) == 4 and len(ImageFolder(root=classes)) == 4
    assert caplog.text.count("1 files of other types are left out (1 .heic)") == 1
    os.remove(classes / "train/a/0.png")
    os.remove(classes / "train/a/1.png")
    with pytest.raises(DataError, match=r"no pictures in this class folder, only 1 \.heic; expected"):
        ImageFolder(root=classes)


def test_loops_in_a_pair_of_folders(tmp_path):
    (tmp_path / "classes.yaml").write_text("[a, b]")
    picture(tmp_path / "images/train/1.png")
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images")
    from PIL import Image
    (tmp_path / "labels/train").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "labels/train/1.png")
    (tmp_path / "images/train/2.psd").write_bytes(b"x")
    data = SegmentationFolder(root=tmp_path)
    assert data.ids == ["1", "loop/train/1"][:1] or data.ids == ["1"]
    assert any("1 .psd" in note for note in data.notes())
