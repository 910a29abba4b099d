"""Part scores against cases computed by hand."""
import numpy as np
import pytest

from jea.metrics import PartScores

PARTS = ((0, 1), (2, 3, 4), (5,))


def a(*values):
    return np.array(values)


def test_one_shape_by_hand():
    scores = PartScores(PARTS)
    # part 0: 2 of 3; part 1: 1 of 2
    assert scores.update(a(0, 0, 0, 1), a(0, 0, 1, 1), 0) == pytest.approx((2 / 3 + 1 / 2) / 2)
    found = scores.scores()
    assert found["instance_mIoU"] == found["category_mIoU"] == found["mIoU"][0] == pytest.approx(7 / 12)
    assert np.isnan(found["mIoU"][1:]).all() and found["accuracy"] == 0.75


def test_an_empty_union_counts_one():
    scores = PartScores(PARTS)
    # part 2: 1 of 2; part 3: 1 of 2; part 4 is in neither
    assert scores.update(a(2, 2, 3), a(2, 3, 3), 1) == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    # part 4 only in the prediction: 0
    assert scores.update(a(2, 4, 3), a(2, 3, 3), 1) == pytest.approx((1 + 1 / 2 + 0) / 3)
    # part 4 only in the label: 0
    assert scores.update(a(2, 3, 3), a(2, 3, 4), 1) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_a_part_of_another_category_is_wrong_and_nothing_more():
    scores = PartScores(PARTS)
    assert scores.update(a(5, 0, 1, 1), a(0, 0, 1, 1), 0) == pytest.approx((1 / 2 + 1) / 2)
    assert scores.scores()["accuracy"] == 0.75


def test_a_single_point():
    scores = PartScores(PARTS)
    assert scores.update(a(5), a(5), 2) == 1 and scores.update(a(0), a(5), 2) == 0
    assert scores.update(a(0), a(0), 0) == 1  # and part 1 is empty
    assert scores.update(a(1), a(0), 0) == 0
    found = scores.scores()
    assert found["mIoU"].tolist()[::2] == [0.5, 0.5] and np.isnan(found["mIoU"][1]) and found["accuracy"] == 0.5


def test_instances_and_categories_are_weighted_differently():
    scores = PartScores(PARTS)
    for prediction in (5, 5, 5, 0):
        scores.update(a(prediction), a(5), 2)
    scores.update(a(0, 0, 0, 1), a(0, 0, 1, 1), 0)
    found = scores.scores()
    assert found["instance_mIoU"] == pytest.approx((3 + 7 / 12) / 5)
    assert found["category_mIoU"] == pytest.approx((3 / 4 + 7 / 12) / 2)  # category 1 has no shapes
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["mIoU"][2] == 0.75


def test_no_shape_at_all():
    found = PartScores(PARTS).scores()
    assert all(np.isnan(found[key]) for key in ("instance_mIoU", "category_mIoU", "accuracy"))
    assert np.isnan(found["mIoU"]).all() and found["mIoU"].shape == (3,)


@pytest.mark.parametrize("prediction, label, category, said", [
    (a(0, 1), a(0), 0, r"prediction is \(2,\), label is \(1,\)"), (a(), a(), 0, "expected .N,. for both"),
    (np.zeros((2, 2), int), np.zeros((2, 2), int), 0, "expected .N,. for both"),
    (a(0.0), a(0), 0, "prediction is float64"), (a(0), a(0), 3, "category is 3; expected 0 to 2"),
    (a(0), a(0), -1, "category is -1"), (a(0), a(2), 0, r"label 2 is no part of category 0, which has \[0, 1\]"),
])
def test_faults(prediction, label, category, said):
    scores = PartScores(PARTS)
    with pytest.raises(ValueError, match=said):
        scores.update(prediction, label, category)
    assert np.isnan(scores.scores()["accuracy"])


@pytest.mark.parametrize("parts", [(), ((0,), ())])
def test_categories_need_parts(parts):
    with pytest.raises(ValueError, match="at least one part"):
        PartScores(parts)
