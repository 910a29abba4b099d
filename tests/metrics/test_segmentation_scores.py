import warnings

import numpy as np
import pytest

from jea.metrics import ConfusionMatrix


def matrix(num_classes, prediction, label):
    result = ConfusionMatrix(num_classes)
    result.update(np.array(prediction), np.array(label))
    return result


def test_counts_and_scores_by_hand():
    # labels: three of class 0 (2 right, 1 as 1), two of class 1 (1 right, 1 as 0), one ignored
    m = matrix(2, [[0, 0, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 255]])
    assert m.counts.dtype == np.int64
    assert m.counts.tolist() == [[2, 1], [1, 1]]
    s = m.scores()
    assert list(s) == ["mIoU", "pAcc", "mAcc", "fwIoU", "IoU"]
    assert s["IoU"] == pytest.approx([2 / 4, 1 / 3])
    assert s["mIoU"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert s["pAcc"] == pytest.approx(3 / 5)
    assert s["mAcc"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert s["fwIoU"] == pytest.approx(3 / 5 * 2 / 4 + 2 / 5 * 1 / 3)


def test_absent_class_is_left_out_and_a_class_only_predicted_counts_zero():
    # class 2 is neither labelled nor predicted; class 3 is predicted once and never labelled
    s = matrix(4, [0, 0, 1, 3], [0, 0, 1, 1]).scores()
    assert s["IoU"][[0, 1, 3]] == pytest.approx([1, 1 / 2, 0])
    assert np.isnan(s["IoU"][2])
    assert s["mIoU"] == pytest.approx(1.5 / 3)
    assert s["mAcc"] == pytest.approx((1 + 1 / 2) / 2)
    assert s["fwIoU"] == pytest.approx(0.5 * 1 + 0.5 * 0.5)


def test_everything_ignored_gives_nan_without_a_warning():
    m = matrix(3, [[0, 1]], [[255, 255]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = m.scores()
    assert m.counts.sum() == 0
    assert all(np.isnan(s[key]) for key in ("mIoU", "pAcc", "mAcc", "fwIoU")) and np.isnan(s["IoU"]).all()


def test_negative_and_large_labels_are_ignored_and_predictions_there_do_not_matter():
    assert matrix(2, [0, 77, 1, -5], [-1, 2, 1, 255]).counts.tolist() == [[0, 0], [0, 1]]


def test_uint8_arrays_do_not_overflow():
    # 20 * 21 + 20 = 440 does not fit in uint8
    m = ConfusionMatrix(21)
    m.update(np.full((3, 3), 20, np.uint8), np.full((3, 3), 20, np.uint8))
    assert m.counts[20, 20] == 9 and m.counts.sum() == 9


def test_updates_and_merge_add_up():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 5, (4, 7, 9)), rng.integers(0, 5, (4, 7, 9))
    whole = matrix(5, prediction, label)
    first, second = matrix(5, prediction[0], label[0]), ConfusionMatrix(5)
    for p, t in zip(prediction[1:], label[1:]):
        second.update(p, t)
    first.merge(second)
    assert (first.counts == whole.counts).all() and whole.counts.sum() == 4 * 63


@pytest.mark.parametrize("prediction, label, message", [
    (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
    (np.zeros((2, 2)), np.zeros((2, 2), int), "float64"),
    (np.full((2, 2), 3), np.zeros((2, 2), int), "expected 0 to 2"),
    (np.full((2, 2), -1), np.zeros((2, 2), int), "predictions from -1"),
])
def test_wrong_updates(prediction, label, message):
    m = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        m.update(prediction, label)
    assert m.counts.sum() == 0


def test_merge_needs_the_same_classes():
    with pytest.raises(ValueError, match="cannot merge 3 classes into 2"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
