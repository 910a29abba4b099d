"""COCO-format files: what is read of them, and that broken and hostile ones end in one DataError, in linear time."""
import copy
import json
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


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read the annotations"):
        read_instances(tmp_path / "none.json")


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
