"""COCO's scores: the twelve numbers that pycocotools gave, and what it does not do."""
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from jea.errors import SetupError  # noqa: E402
from jea.metrics import detection  # noqa: E402
from jea.metrics.detection import STATS, coco_scores, mean_ap  # noqa: E402

FOLDER = Path(__file__).parents[1] / "fixtures" / "detection"
MANIFEST = json.loads((FOLDER / "coco_eval.json").read_text())
CASES = [(name, kind) for name, case in MANIFEST["cases"].items() for kind in ("box", "segm", "both") if kind in case]


@pytest.fixture(scope="module")
def stored():
    return np.load(FOLDER / "coco_eval.npz")


@pytest.mark.parametrize("name, kind", CASES)
def test_the_twelve_numbers(stored, name, kind):
    truth, results = (json.loads(stored[f"{name}/{part}"].tobytes()) for part in ("gt", kind))
    scores = coco_scores(truth, results, MANIFEST["cases"][name][kind]["iouType"])
    assert [scores[stat] for stat in STATS] == stored[f"{name}/{kind}/stats"].tolist()
    assert np.array_equal(scores["eval"]["recall"], stored[f"{name}/{kind}/recall"])


def test_there_are_cases():
    assert len(CASES) >= 12


def test_without_results_it_is_zero(stored):
    truth = json.loads(stored["basic/gt"].tobytes())
    scores = coco_scores(truth, [], "bbox")
    assert scores["AP"] == 0 and scores["AR100"] == 0 and mean_ap(scores) == 0
    assert set(scores["classes"].values()) == {0.0}


def test_without_anything_to_find_there_is_no_score(stored):
    truth = dict(json.loads(stored["basic/gt"].tobytes()), annotations=[])
    for results in ([], json.loads(stored["basic/box"].tobytes())):
        scores = coco_scores(truth, results, "bbox")
        assert scores["AP"] == -1 and mean_ap(scores) is None


def test_the_extra_is_named(monkeypatch):
    import builtins
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pycocotools"):
            raise ImportError("No module named 'pycocotools'")
        return original(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SetupError, match=r"jea\[detection\]"):
        detection.tools()
