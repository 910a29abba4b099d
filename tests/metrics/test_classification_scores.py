import warnings

import numpy as np
import pytest

from jea.metrics import ClassificationScores


def scored(num_classes, scores, labels, **options):
    result = ClassificationScores(num_classes, **options)
    result.update(np.array(scores, np.float32), np.array(labels))
    return result


def test_by_hand():
    s = scored(3, [[3, 2, 1], [1, 2, 3], [2, 3, 1], [1, 3, 2]], [0, 0, 1, 2], topk=(1, 2)).scores()
    assert list(s) == ["top1", "top2", "mean_class", "accuracy", "confusion"]
    assert s["top1"] == 2 / 4  # the first and the third
    assert s["top2"] == 3 / 4  # the last as well; class 0 is third in the second picture
    assert s["accuracy"].tolist() == [1 / 2, 1, 0]
    assert s["mean_class"] == pytest.approx(1.5 / 3)
    assert s["confusion"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]] and s["confusion"].dtype == np.int64


def test_batches_add_up():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 7)), rng.integers(0, 6, 50)
    whole, parts = scored(7, scores, labels), ClassificationScores(7)
    for start in range(0, 50, 8):
        parts.update(scores[start:start + 8], labels[start:start + 8])
    a, b = whole.scores(), parts.scores()
    assert a["top1"] == b["top1"] == np.mean(scores.astype(np.float32).argmax(1) == labels)
    in_five = [labels[i] in np.argsort(-scores[i])[:5] for i in range(50)]
    assert a["top5"] == b["top5"] == np.mean(in_five)
    assert np.array_equal(a["confusion"], b["confusion"]) and np.isnan(a["accuracy"][6])
    assert a["mean_class"] == pytest.approx(a["accuracy"][:6].mean())


def test_merging_is_counting_together():
    scores, labels = [[3, 2, 1], [1, 2, 3], [np.nan, 3, 1], [1, 3, 2]], [0, 0, 1, 2]
    parts = [scored(3, scores[k::2], labels[k::2], topk=(1, 2)) for k in range(2)]
    parts[0].merge(parts[1])
    merged, whole = parts[0].scores(), scored(3, scores, labels, topk=(1, 2)).scores()
    for key in whole:
        assert np.array_equal(merged[key], whole[key]), key
    with pytest.raises(ValueError, match="cannot merge 2 classes"):
        parts[0].merge(ClassificationScores(2, topk=(1, 2)))


def test_a_tie_goes_to_the_lower_class():
    s = scored(3, [[1, 1, 1], [1, 1, 1], [1, 1, 1]], [0, 1, 2], topk=(1, 2)).scores()
    assert s["top1"] == 1 / 3 and s["top2"] == 2 / 3
    assert s["confusion"][:, 0].tolist() == [1, 1, 1]


def test_nan_is_wrong():
    s = scored(2, [[np.nan, 1], [np.nan, np.nan], [0, 1]], [1, 0, 1], topk=(1, 2)).scores()
    assert s["top1"] == s["top2"] == 1 / 3 and s["confusion"].sum() == 1
    assert s["accuracy"].tolist() == [0, 1 / 2]


def test_more_k_than_classes():
    assert scored(3, [[1, 2, 3]], [0]).scores()["top5"] == 1


def test_worst_classes_and_what_they_are_taken_for():
    eye = np.eye(4)
    labels = [0, 0, 1, 1, 1, 1, 2]
    found = [0, 0, 0, 2, 2, 1, 2]  # class 1: one right, once taken for 0, twice for 2
    s = scored(4, eye[found], labels)
    assert s.worst(1) == [(1, 0.25, [(2, 0.5), (0, 0.25)])]
    assert [c for c, _, _ in s.worst(9)] == [1, 0, 2]  # class 3 has no picture


def test_nothing_to_judge_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = ClassificationScores(2).scores()
    assert np.isnan(s["top1"]) and np.isnan(s["mean_class"]) and s["confusion"].sum() == 0


@pytest.mark.parametrize("scores, labels, said", [
    ([[1, 2]], [0], r"\(1, 2\).*expected \(B, 3\)"),
    ([[1, 2, 3]], [0, 1], "labels"),
    ([[1, 2, 3]], [3], "expected 0 to 2"),
    ([[1, 2, 3]], [-1], "expected 0 to 2"),
    ([[1, 2, 3]], [0.0], "expected integers"),
])
def test_what_does_not_fit(scores, labels, said):
    with pytest.raises(ValueError, match=said):
        ClassificationScores(3).update(np.array(scores), np.array(labels))
    with pytest.raises(ValueError, match="expected at least 1"):
        ClassificationScores(0)
