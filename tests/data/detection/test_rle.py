"""Run lengths and polygons against COCO's own tools."""
import json
from pathlib import Path

import numpy as np
import pytest

from jea.data.detection.rle import mask_of_runs, runs_of_mask, runs_of_polygon, runs_of_text, text_of_runs
from jea.errors import DataError

STORED = Path(__file__).parents[2] / "fixtures" / "detection" / "coco_eval.npz"


@pytest.fixture(scope="module")
def stored():
    ref = np.load(STORED)
    polygons, runs = (json.loads(ref[f"polygons/{name}"].tobytes()) for name in ("polygons", "rle"))
    masks = np.unpackbits(ref["polygons/masks"], axis=1)[:, :3500].reshape(-1, 50, 70).astype(bool)
    return list(zip(polygons, runs, masks))


def test_polygons_are_drawn_as_cocos_tools_do(stored):
    assert len(stored) == 48
    for parts, _, mask in stored:
        drawn = np.zeros((50, 70), bool)
        for part in parts:
            runs = runs_of_polygon(part, 50, 70)
            assert sum(runs) == 3500 and min(runs) >= 0
            drawn |= mask_of_runs(runs, 50, 70)
        assert np.array_equal(drawn, mask), parts


def test_random_polygons_are_cocos():
    """Within the picture and beyond it, with whole and broken corners, folded and crossing themselves."""
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for case in range(600):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        points = rng.random((int(rng.integers(3, 12)), 2)) * [width, height]
        if case % 4 == 1:
            points = points * 3 - [width, height]
        elif case % 4 == 2:
            points = np.round(points)
        elif case % 4 == 3:
            points = (points - [width / 2, height / 2]) * 40
        corners = points.reshape(-1).tolist()
        text = tools.frPyObjects([corners], height, width)[0]["counts"].decode()
        runs = runs_of_polygon(corners, height, width)
        assert np.array_equal(mask_of_runs(runs, height, width),
                              mask_of_runs(runs_of_text(text, height * width), height, width)), (case, corners)
        assert text_of_runs(runs) == text


def test_texts_are_cocos(stored):
    for _, runs, mask in stored:
        assert text_of_runs(runs_of_mask(mask)) == runs["counts"]
        assert runs_of_text(runs["counts"], 3500) == runs_of_mask(mask)


def test_there_and_back():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (7, 1), (13, 17)):
        for share in (0.0, 0.1, 0.6, 1.0):
            mask = rng.random(shape) < share
            runs = runs_of_mask(mask)
            assert np.array_equal(mask_of_runs(runs, *shape), mask)
            assert runs_of_text(text_of_runs(runs), mask.size) == runs


@pytest.mark.parametrize("text", ("", "~", "o", "oooooooooooo", "0", "ZZZZ", "1" * 5000, "\u4e2d"))
def test_broken_texts(text):
    with pytest.raises(DataError):
        runs_of_text(text, 3500)
