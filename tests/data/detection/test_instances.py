"""COCO-format files: what is read of them, and that broken and hostile ones end in one DataError, in linear time."""
import copy
import json
import os
import sys
import time

import numpy as np
import pytest

from jea.data.detection.instances import read_instances
from jea.data.faults import collecting
from jea.errors import DataError

SOUND = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 30},
               {"id": 3, "file_name": "b.jpg", "height": 10, "width": 12}],
    "annotations": [
        {"id": 5, "image_id": 3, "category_id": 9, "bbox": [1, 2, 5, 4], "area": 11.5, "iscrowd": 0,
         "segmentation": [[1, 2, 6, 2, 6, 6, 1, 6]]},
        {"id": 6, "image_id": 7, "category_id": 2, "bbox": [0, 0, 30, 20], "area": 4, "iscrowd": 1,
         "segmentation": {"size": [20, 30], "counts": [10, 4, 586]}},
        {"id": 8, "image_id": 7, "category_id": 2, "bbox": [3, 3, 2, 2]}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
}


def write(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_sound_file(tmp_path):
    found = read_instances(write(tmp_path, SOUND))
    assert found.names == ("cat", "dog") and found.category_ids == (2, 9)
    assert found.files == ["a.jpg", "b.jpg"] and found.first.tolist() == [0, 2, 3]
    assert found.classes.tolist() == [0, 0, 1] and found.crowd.tolist() == [True, False, False]
    assert found.areas.tolist() == [4, 4, 11.5]  # the second from its box
    assert found.kinds.tolist() == [2, 0, 1]
    assert found.mask(0, 20, 30).sum() == 4 and found.mask(1, 20, 30).sum() == 4
    mask = found.mask(2, 10, 12)
    assert mask.sum() == 20 and mask[2:6, 1:6].all()


def changed(path, value):
    content = copy.deepcopy(SOUND)
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return content


BAD = [
    (("images",), {}), (("images",), KeyError), (("annotations",), "x"), (("categories",), None),
    (("images", 0), 5), (("images", 0, "id"), 3), (("images", 0, "id"), 1.5), (("images", 0, "id"), True),
    (("images", 0, "height"), 0), (("images", 0, "width"), 10 ** 9), (("images", 0, "height"), "20"),
    (("images", 0, "file_name"), "../../etc/passwd"), (("images", 0, "file_name"), "/etc/passwd"),
    (("images", 0, "file_name"), ""), (("images", 0, "file_name"), "a\0b"), (("images", 0, "file_name"), 3),
    (("categories", 0, "id"), 2), (("categories", 0, "name"), 4), (("categories", 0), []),
    (("annotations", 0), None), (("annotations", 0, "id"), [1]), (("annotations", 0, "image_id"), 99),
    (("annotations", 0, "image_id"), {}), (("annotations", 0, "category_id"), 1),
    (("annotations", 0, "category_id"), "9"), (("annotations", 0, "bbox"), [1, 2, 3]),
    (("annotations", 0, "bbox"), [1, 2, 3, "4"]),
    (("annotations", 0, "bbox"), [1, 2, 3, 1e300]), (("annotations", 0, "bbox"), {"x": 1}),
    (("annotations", 0, "area"), -1), (("annotations", 0, "area"), "big"), (("annotations", 0, "iscrowd"), 2),
    (("annotations", 0, "iscrowd"), "no"), (("annotations", 0, "segmentation"), [[1, 2, 3, 4]]),
    (("annotations", 0, "segmentation"), [[1, 2, 3, 4, 5]]), (("annotations", 0, "segmentation"), [["a"] * 6]),
    (("annotations", 0, "segmentation"), [[1e12] * 6]), (("annotations", 0, "segmentation"), "text"),
    (("annotations", 1, "segmentation", "size"), [10 ** 6, 10 ** 6]),
    (("annotations", 1, "segmentation", "size"), None),
    (("annotations", 1, "segmentation", "counts"), [10 ** 18, 4]),
    (("annotations", 1, "segmentation", "counts"), [-1, 601]),
    (("annotations", 1, "segmentation", "counts"), [600.0]), (("annotations", 1, "segmentation", "counts"), "zzzz"),
    (("annotations", 1, "segmentation", "counts"), [5]),
    (("annotations", 1, "segmentation", "counts"), [4.0, True, 595]), (("annotations", 1, "segmentation"), 7),
    (("annotations", 1, "segmentation", "counts"), None), (("annotations", 1, "segmentation", "counts"), {"0": 600}),
    (("annotations", 0, "segmentation"), [[1, 2, 3, 4, 5, None]]), (("annotations", 0, "segmentation"), [None]),
    (("annotations", 0, "segmentation"), [[True] * 6]), (("annotations", 0, "bbox"), [[1], 2, 3, 4]),
    (("annotations", 0, "bbox"), [1, 2, 3, True]), (("annotations", 0, "bbox"), [1, 2, 3, 10 ** 4000]),
    (("annotations", 0, "area"), 10 ** 4000), (("annotations", 0, "id"), 10 ** 4000), (("annotations", 0, "id"), None),
    (("annotations", 0, "id"), 5.0), (("annotations", 0, "iscrowd"), 10 ** 4000), (("annotations", 0, "iscrowd"), []),
    (("annotations", 0, "image_id"), 10 ** 4000), (("annotations", 0, "image_id"), "3"),
    (("annotations", 0, "category_id"), 9.0), (("annotations", 0, "category_id"), []),
    (("images", 0, "id"), 10 ** 30), (("images", 0, "id"), "\ud800"), (("images", 0, "id"), {}),
    (("images", 0, "height"), 10 ** 4000), (("images", 0, "width"), True), (("images", 0, "width"), None),
    (("images", 0, "file_name"), "\ud800.jpg"), (("images", 0, "file_name"), ["a.jpg"]),
    (("images", 0, "file_name"), "a/../../b.jpg"), (("categories", 0, "name"), "\udfff"),
    (("categories", 0, "name"), ""), (("categories", 0, "id"), 1e3), (("categories", 0, "id"), 10 ** 40),
    (("categories", 0, "id"), "9"),
]


@pytest.mark.parametrize("path, value", BAD, ids=[f"{'.'.join(map(str, p))}-{i}" for i, (p, _) in enumerate(BAD)])
def test_a_broken_entry_is_one_error(tmp_path, path, value):
    file = write(tmp_path, changed(path, value))
    with pytest.raises(DataError, match="file.json"):
        read_instances(file)


@pytest.mark.parametrize("content", (b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"images": NaN}', b"[" * 200_000,
                                     b'{"a":' * 100_000,
                                     b'{"images": [], "categories": [], "annotations": ' + b"9" * 10_000 + b"}",
                                     b'{"images": [' + b"9" * 5000 + b"]}"))
def test_broken_files(tmp_path, content):
    with pytest.raises(DataError, match="file.json"):
        read_instances(write(tmp_path, content))


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "circle.json").symlink_to(tmp_path / "circle.json")
    os.mkfifo(tmp_path / "pipe.json")
    for name, said in (("none", "annotations does not exist"), ("folder", "is a folder"),
                       ("circle", "cannot read the annotations"), ("pipe", "is a pipe"), ("a\0b", "no name of a")):
        with pytest.raises(DataError, match=said):
            read_instances(tmp_path / f"{name}.json")


@pytest.mark.parametrize("place", ("images", "categories", "annotations"))
@pytest.mark.parametrize("inside", (b"[%s]", b'{"a": %s}'))
def test_any_depth_is_one_error(tmp_path, place, inside):
    """Just within what JSON's reader takes, a message may still not be able to show it."""
    limit = sys.getrecursionlimit()
    for depth in (3, 100, *range(limit - 120, limit + 20, 3)):
        left, right = inside.split(b"%s")
        nested = left * depth + b"1" + right * depth
        text = json.dumps(dict(SOUND, **{place: ["@"]})).encode().replace(b'"@"', nested)
        with pytest.raises(DataError, match="file.json"):
            read_instances(write(tmp_path, text))


def test_a_value_of_the_wrong_kind_anywhere_is_one_error_or_none(tmp_path):
    """Every value of the file in turn becomes something else, or is left out."""
    def places(value, path=()):
        yield from [path] if path else []
        for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
            yield from places(value[key], (*path, key))
    refused = 0
    for path in places(SOUND):
        for value in (KeyError, None, True, -1, 0, 1.5, 1e308, 10 ** 25, "", "x" * 200, [], [[]], {}, {"a": [1, {}]}):
            file = write(tmp_path, changed(path, value))
            try:
                found = read_instances(file)
            except DataError as error:
                assert str(error).startswith(str(file)) and len(str(error)) < 600, (path, value)
                refused += 1
                continue
            for picture, (height, width) in enumerate(found.sizes.tolist()):
                for n in found.of(picture):
                    assert found.mask(n, height, width).shape == (height, width)
    assert refused > 500


def test_a_claimed_size_costs_nothing(tmp_path):
    """Pictures of 4 gigapixels, and masks of as many, in a file of a few hundred bytes."""
    content = copy.deepcopy(SOUND)
    content["images"][0].update(height=65_536, width=65_536)
    content["annotations"][1]["segmentation"].update(size=[65_536, 65_536], counts=[1 << 31, 1 << 31])
    with pytest.raises(DataError, match="65536 x 65536 pixels are over the limit"):
        read_instances(write(tmp_path, content))


def test_polygons_that_reach_far_out(tmp_path):
    """Their outlines are millions of steps long; what is drawn of them is what lies in the picture."""
    content = copy.deepcopy(SOUND)
    far = 1_000_000
    content["annotations"][0]["segmentation"] = [[-far, 2, far, 2, far, 6, -far, 6]]
    mask = read_instances(write(tmp_path, content)).mask(2, 10, 12)
    assert mask[2:6].all() and mask.sum() == 4 * 12
    corners = [[(-far if k % 2 else far) + k, k % 9] if k % 4 < 2 else [k % 11, (-far if k % 2 else far) - k]
               for k in range(4000)]
    content["annotations"][0]["segmentation"] = [[v for corner in corners for v in corner]]
    found, started = read_instances(write(tmp_path, content)), time.process_time()
    assert found.mask(2, 10, 12).shape == (10, 12)
    assert time.process_time() - started < 2  # step by step: 2e10 of them


def test_many_parts_are_joined_at_once(tmp_path):
    content = copy.deepcopy(SOUND)
    content["images"][1].update(height=2000, width=2000)
    content["annotations"][0]["segmentation"] = [[k, k, k + 2, k, k + 2, k + 2, k, k + 2] for k in range(1, 1501)]
    found, started = read_instances(write(tmp_path, content)), time.process_time()
    mask = found.mask(2, 2000, 2000)
    assert time.process_time() - started < 3  # a picture of 4 million pixels for each of 1500 parts: 15 s
    assert mask.sum() == 1500 * 4 - 1499 and mask[1:3, 1:3].all() and not mask[0].any()
    assert found.runs(2, 2000, 2000)[0] == 2000 + 1


def test_checks_collect_what_training_lives_with(tmp_path):
    content = copy.deepcopy(SOUND)
    content["annotations"] += [
        {"id": 6, "image_id": 7, "category_id": 2, "bbox": [3, 3, 0, 2]}, {"id": 0, "image_id": 7, "category_id": 2,
                                                                          "bbox": [3, 3, 40, 2]},
        {"id": 20, "image_id": 7, "category_id": 2, "bbox": [3, 3, 0.5, 2]},
        {"id": 21, "image_id": 7, "category_id": 55,
                                                                             "bbox": [3, 3, 1, 2]}]
    path = write(tmp_path, content)
    with collecting() as found:
        read_instances(path)
    text = "\n".join(found)
    for said in ("id 6 occurs twice", "annotation id 0", "is empty", "leaves its picture", "thinner than a pixel",
                 "category 55"):
        assert said in text, said
    content["annotations"].pop()
    assert len(read_instances(write(tmp_path, content)).classes) == 6


@pytest.mark.parametrize("kind", ("polygon", "runs", "text", "annotations", "parts"))
def test_time_is_linear(tmp_path, kind):
    def seconds(size):
        content = copy.deepcopy(SOUND)
        entry = content["annotations"][0]
        content["images"][1].update(height=1000, width=1000)
        if kind == "polygon":
            entry["segmentation"] = [[1, 2] * size]
        elif kind == "runs":
            entry["segmentation"] = {"size": [1000, 1000], "counts": [0] * size + [1_000_000]}
        elif kind == "text":
            entry["segmentation"] = {"size": [1000, 1000], "counts": "0" * size}
        elif kind == "parts":
            entry["segmentation"] = [[1, 2, 3, 4, 5, 6]] * (size // 6)
        else:
            content["annotations"] += [dict(entry, id=100 + k) for k in range(size // 20)]
        path, best = write(tmp_path, content), np.inf
        for _ in range(3):
            started = time.process_time()
            try:
                read_instances(path)
            except DataError:
                pass
            best = min(best, time.process_time() - started)
        return best
    small, large = seconds(20_000), seconds(160_000)
    assert large < 40 * max(small, 0.004), (small, large)  # 8 times as much; the square would be 64
