"""Anchors, steps, levels and losses against torchvision's and mmdetection's stored answers."""
import json
import zlib

import numpy as np
import pytest
from detection_fixtures import FOLDER

from jea._jittor import jt
from jea.models.detection import boxes as box_math
from jea.models.detection.losses import smooth_l1
from jea.models.detection.sampling import Sampler, Truth, joined, regions_of
from jea.models.detection.styles import STYLES, style_of

TORCHVISION, MMDET = STYLES["torchvision"], STYLES["mmdet"]
ANCHORS = json.loads((FOLDER / "det_ops.json").read_text())["anchors"]


@pytest.fixture(scope="module")
def stored():
    return np.load(FOLDER / "det_ops.npz")


def sizes_of(kind):
    style = TORCHVISION if kind.startswith("tv") else MMDET
    return style, (box_math.rpn_sizes() if kind.endswith("rpn") else box_math.retina_sizes(style))


@pytest.mark.parametrize("kind", ("tv_rpn", "tv_retina", "mm_rpn", "mm_retina"))
def test_anchors_of_a_cell(stored, kind):
    style, sizes = sizes_of(kind)
    for level, wanted in zip(sizes, stored[f"anchor/{kind}_cells"]):
        got = box_math.cell_anchors(level, style)
        assert np.array_equal(got, wanted) if style.rounded_anchors else np.abs(got - wanted).max() < 1e-4


@pytest.mark.parametrize("row", ANCHORS, ids=[f"{r['kind']}-{r['padded'][0]}x{r['padded'][1]}" for r in ANCHORS])
def test_all_anchors_of_a_batch(row):
    style, sizes = sizes_of(row["kind"])
    first = 4 if row["kind"].endswith("rpn") else 8
    found = np.concatenate(box_math.anchors(tuple(sizes), tuple(map(tuple, row["grids"])), tuple(row["padded"]), first,
                                            style))
    assert found.dtype == np.float32 and len(found) == row["count"]
    if style.rounded_anchors:
        assert zlib.crc32(found.astype("<f4").tobytes()) == row["crc32"]
    assert np.allclose(found[-1], row["last"], rtol=1e-6)
    flat = found.astype(np.float64).reshape(-1)
    assert abs(np.abs(flat).sum() - row["abs_sum"]) <= 1e-6 * row["abs_sum"]
    weighted = (flat * (np.arange(flat.size) % 1009)).sum()
    assert abs(weighted - row["weighted_sum"]) <= 1e-6 * abs(row["weighted_sum"])


@pytest.mark.parametrize("kind", ("mm_rpn", "mm_retina"))
def test_anchors_of_a_pictures_own_cells(stored, kind):
    _, sizes = sizes_of(kind)
    first = 4 if kind.endswith("rpn") else 8
    grids = tuple((-(-96 // (first * 2 ** k)), -(-160 // (first * 2 ** k))) for k in range(5))
    kept = box_math.within(grids, (75, 131), [3 * len(level) for level in sizes], first)
    wanted = np.unpackbits(stored[f"anchor/{kind}_valid"])[:len(kept)].astype(bool)
    assert np.array_equal(kept, wanted)


def test_anchors_within_a_border():
    cascade = style_of("mmdet", cascade=True)
    grids = tuple((-(-96 // (4 * 2 ** k)), -(-160 // (4 * 2 ** k))) for k in range(5))
    anchors = box_math.anchors(tuple(box_math.rpn_sizes()), grids, (96, 160), 4, cascade)
    kept = box_math.trained_anchors(anchors, grids, (90, 150), 4, cascade)
    boxes = np.concatenate(anchors)
    wanted = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] < 150) & (boxes[:, 3] < 90)
    assert np.array_equal(kept, wanted) and 0 < kept.sum() < len(kept)


ONE, TEN = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)


@pytest.mark.parametrize("weights, deviations", (("w1", ONE), ("w10", TEN)))
def test_steps(stored, close, weights, deviations):
    proposals, targets, deltas = (stored[f"box/{name}"] for name in ("proposals", "targets", "deltas"))
    for prefix, style in (("tv", TORCHVISION), ("mm", MMDET)):
        close(box_math.encode(proposals, targets, deviations), stored[f"box/{prefix}_encode_{weights}"], 1e-6)
        got = box_math.decode(proposals, deltas[:, None], deviations, style)[:, 0]
        wanted = stored[f"box/{prefix}_decode_{weights}"]
        close(got, wanted, 1e-6)
        sides = wanted[:, 2:] - wanted[:, :2]  # the lower clamp shows in small boxes alone
        large = np.abs(sides) > 1e-2
        assert np.abs((got[:, 2:] - got[:, :2])[large] / sides[large] - 1).max() < 1e-2
    close(box_math.clip(box_math.decode(proposals, deltas[:, None], deviations, MMDET)[:, 0], (200, 280)),
          stored[f"box/mm_decode_clip_{weights}"], 1e-6)


def test_steps_of_several_classes(stored, close):
    proposals, deltas = stored["box/proposals"], stored["box/deltas3"].reshape(60, 3, 4)
    close(box_math.decode(proposals, deltas, TEN, TORCHVISION), stored["box/tv_decode3"], 1e-6)
    assert np.array_equal(box_math.clip(stored["box/targets"], (150, 220)), stored["box/clip"])


def test_levels(stored):
    assert np.array_equal(box_math.levels_of(stored["level/boxes"], TORCHVISION), stored["level/tv"])
    assert np.array_equal(box_math.levels_of(stored["level/boxes"], MMDET), stored["level/mm"])


@pytest.mark.parametrize("name, beta", (("beta_1_9", 1 / 9), ("beta_1", 1.0), ("l1", 0.0)))
def test_smooth_l1(stored, close, name, beta):
    away = jt.array(stored["loss/diff"])
    loss = smooth_l1(away, beta)
    close(loss.numpy(), stored[f"loss/smooth_l1_{name}"], 1e-6)
    close(jt.grad(loss.sum(), away).numpy(), stored[f"loss/smooth_l1_{name}/grad"], 1e-6)


def test_best_first_is_stable():
    values = np.array([1, 3, 3, 2, 3, 0], np.float32)
    assert box_math.best_first(values, 2).tolist() == [1, 2]
    assert box_math.best_first(values, 4).tolist() == [1, 2, 4, 3]
    assert box_math.best_first(values, 99).tolist() == [1, 2, 4, 3, 0, 5]
    assert box_math.best_first(values[:0], 3).tolist() == []


def test_samples_are_a_function_of_the_seed():
    positives, negatives = np.arange(50), np.arange(50, 500)
    draw = [Sampler([seed]).choose("rpn", 0, positives, negatives, 64, 0.25) for seed in (1, 1, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(draw[0], draw[1]))
    assert not np.array_equal(draw[0][1], draw[2][1])
    assert len(draw[0][0]) == 16 and len(draw[0][1]) == 48
    few, many = Sampler([1]).choose("roi", 0, positives[:3], negatives, 64, 0.25)
    assert len(few) == 3 and len(many) == 61


@pytest.mark.parametrize("style", (TORCHVISION, MMDET), ids=lambda s: s.name)
def test_the_truth_is_among_the_proposals(style):
    truth = Truth([[10, 10, 30, 30], [50, 50, 90, 80]], [3, 1])
    proposals = np.array([[11, 11, 30, 31], [0, 0, 5, 5], [48, 50, 90, 82]], np.float32)
    found = joined([regions_of(0, proposals, truth, Sampler([0]), kind="roi", style=style, threshold=0.5,
                               low_quality=False, deviations=TEN, count=100)])
    assert found.labels.tolist() == [3, 1, 3, 1, -1]
    assert found.is_truth.sum() == 2
    truths = found.boxes[found.is_truth]
    assert np.array_equal(truths, truth.boxes) and not found.steps[found.is_truth].any()
    assert not found.steps[found.labels < 0].any()


def test_a_picture_without_truth_is_background():
    found = regions_of(0, np.ones((4, 4), np.float32), Truth(np.zeros((0, 4)), []), Sampler([0]), kind="roi",
                       style=MMDET, threshold=0.5, low_quality=True, deviations=TEN, count=3)
    assert found.labels.tolist() == [-1] * 3 and not found.steps.any()
