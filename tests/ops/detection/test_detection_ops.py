"""Operators of detectors: kernels and references against numpy in float64 and torchvision's and mmdetection's
answers."""
import json
from pathlib import Path

import numpy as np
import pytest

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.detection import iou_matrix, match_boxes, nms, paste_masks, roi_align, sigmoid_focal_loss
from jea.ops.detection.roi_align import _from_nchw, _to_nchw

FIXTURES = Path(__file__).parents[2] / "fixtures" / "detection"
IMPLEMENTATIONS = ["fused", "ref"]


@pytest.fixture(scope="module")
def stored():
    return np.load(FIXTURES / "det_ops.npz")


@pytest.fixture(scope="module")
def recipe_input():
    import recipe
    return recipe.input_array


def boxes_of(rng, count, extent=300.0, largest=120.0):
    corner = rng.random((count, 2)) * extent
    return np.concatenate([corner, corner + rng.random((count, 2)) * largest], 1).astype(np.float32)


def poison():
    made = [jt.full((200_000,), float("nan")) for _ in range(4)]
    jt.sync(made)


# -- nms

CASES = ("random", "ties", "empty", "one", "touching", "zero_area", "small", "many", "equal_scores")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_nms_is_torchvisions(stored, case, impl):
    boxes, scores, classes, threshold, keep, per_class = (
        stored[f"nms/{case}/{key}"] for key in ("boxes", "scores", "classes", "threshold", "keep", "keep_per_class"))
    poison()
    assert np.array_equal(nms(boxes, scores, threshold=float(threshold), impl=impl), keep)
    assert np.array_equal(nms(boxes, scores, classes.astype(np.int32), threshold=float(threshold), impl=impl),
                          per_class)


def greedy(boxes, scores, groups, threshold):
    """float32 throughout, one box at a time; the definition."""
    f = np.float32
    kept = []
    for i in np.argsort(-scores.astype(np.float64), kind="stable"):
        a = boxes[i]
        for j in kept:
            b = boxes[j]
            w = max(f(min(a[2], b[2])) - f(max(a[0], b[0])), f(0))
            h = max(f(min(a[3], b[3])) - f(max(a[1], b[1])), f(0))
            inter = f(w * h)
            whole = f(f((a[2] - a[0]) * (a[3] - a[1])) + f((b[2] - b[0]) * (b[3] - b[1]))) - inter
            if groups[i] == groups[j] and whole > 0 and float(inter / whole) > threshold:
                break
        else:
            kept.append(i)
    return np.array(kept)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("threshold", (0.0, 0.3, 0.5, 0.7, 1.0))
def test_nms_with_ties_and_groups(impl, threshold):
    rng = np.random.default_rng(3)
    for count, groups in ((1, 1), (63, 2), (65, 1), (300, 4)):
        boxes = np.round(boxes_of(rng, count, 60, 40) / 4) * 4  # many equal boxes and IoUs
        scores = np.floor(rng.random(count) * 12).astype(np.float32) / 8 - 0.5
        group = rng.integers(-1, groups, count).astype(np.int32)
        assert np.array_equal(nms(boxes, scores, group, threshold=threshold, impl=impl),
                              greedy(boxes, scores, group, threshold)), count


def test_nms_at_thresholds_that_are_quotients():
    """IoUs that lie exactly on the threshold, or one rounding beside it, for thresholds of either parity."""
    rng = np.random.default_rng(5)
    boxes = np.concatenate([np.zeros((400, 2)), rng.integers(1, 60, (400, 2))], 1).astype(np.float32)
    scores = rng.permutation(400).astype(np.float32)
    quality = iou_matrix(boxes, boxes)
    for value in np.unique(quality)[5:-1:97]:
        for threshold in (float(value), float(np.nextafter(value, np.float32(2))),
                          float(np.nextafter(value, np.float32(0)))):
            group = np.zeros(400, np.int32)
            assert np.array_equal(nms(boxes, scores, threshold=threshold),
                                  greedy(boxes, scores, group, threshold)), threshold


def test_nms_refuses():
    with pytest.raises(ValueError, match="boxes are"):
        nms(np.zeros((3, 5)), np.zeros(3), threshold=0.5)
    with pytest.raises(ValueError, match="groups are"):
        nms(np.zeros((3, 4)), np.zeros(3), np.zeros(2), threshold=0.5)
    with pytest.raises(ValueError, match="threshold is 1.5"):
        nms(np.zeros((3, 4)), np.zeros(3), threshold=1.5)


# -- match_boxes

RULES = {"tv_rpn": (0.7, 0.3, "restore", 0), "tv_retina": (0.5, 0.4, "restore", 0), "tv_roi": (0.5, 0.5, None, 0),
         "mm_rpn": (0.7, 0.3, "overwrite", 0.3), "mm_retina": (0.5, 0.4, "overwrite", 0.0),
         "mm_roi_mask": (0.5, 0.5, "overwrite", 0.5), "mm_roi": (0.5, 0.5, None, 0)}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", "ab")
def test_matching_is_upstreams(stored, case, rule, impl):
    high, low, low_quality, least = RULES[rule]
    quality, wanted = stored[f"match/{case}/iou"], stored[f"match/{case}/{rule}"].astype(np.int32)
    if rule.startswith("mm"):  # 0 background, -1 neither, else the truth + 1
        wanted = np.where(wanted > 0, wanted - 1, np.where(wanted == 0, -1, -2))
    poison()
    matches, best = match_boxes(np.zeros((240, 4), np.float32), np.zeros((6, 4), np.float32), high=high, low=low,
                                low_quality=low_quality, least=least, quality=quality, impl=impl)
    assert np.array_equal(matches, wanted)
    assert np.array_equal(best, quality.max(0))


@pytest.mark.parametrize("low_quality", (None, "restore", "overwrite"))
def test_matching_from_boxes(low_quality):
    rng = np.random.default_rng(7)
    for n, count in ((1, 1), (511, 3), (513, 40), (3000, 7)):
        boxes = np.round(boxes_of(rng, n, 200, 90))  # whole pixels: equal IoUs
        truths = np.concatenate([boxes[:count // 2], np.round(boxes_of(rng, count - count // 2, 200, 90))])
        options = dict(high=0.7, low=0.3, low_quality=low_quality, least=0.3)
        got, wanted = (match_boxes(boxes, truths, impl=impl, **options) for impl in IMPLEMENTATIONS)
        assert np.array_equal(got[0], wanted[0]) and np.array_equal(got[1], wanted[1]), (n, count)
        exact = iou_matrix(truths.astype(np.float64), boxes.astype(np.float64)).max(0)
        assert np.abs(got[1] - exact).max() < 1e-6


def test_iou_is_torchvisions(stored):
    got = iou_matrix(stored["box/proposals"][:20], stored["box/targets"][:30])
    assert np.abs(got - stored["box/iou"]).max() < 1e-6


def test_matching_without_truths():
    matches, best = match_boxes(np.ones((5, 4), np.float32), np.zeros((0, 4), np.float32), high=0.7, low=0.3)
    assert matches.tolist() == [-1] * 5 and best.tolist() == [0] * 5


# -- roi_align

ALIGN = [(a, s, size) for a, s, size in ((0, 2, "7x7"), (0, 2, "2x3"), (0, 0, "7x7"), (1, 2, "7x7"), (1, 2, "2x3"),
                                         (1, 0, "7x7"), (1, 0, "2x3"), (1, 3, "2x3"))]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("aligned, sampling, size", ALIGN)
def test_roi_align_is_torchvisions(stored, recipe_input, close, aligned, sampling, size, impl):
    name = f"roi/aligned{aligned}_sampling{sampling}_{size}"
    features = jt.array(stored["roi/features"])
    poison()
    y = roi_align([features], stored["roi/rois"], size=tuple(map(int, size.split("x"))), scales=[0.25],
                  sampling=sampling, aligned=bool(aligned), impl=impl)
    close(y.numpy(), stored[name], 5e-6, name)
    poison()
    gradient = jt.grad((y * jt.array(recipe_input(f"ops/{name}", y.shape))).sum(), features)
    close(gradient.numpy(), stored[name + "/grad"], 5e-6, name)


@pytest.mark.parametrize("channels", (1, 5, 70))
def test_roi_align_over_levels(close, channels):
    rng = np.random.default_rng(11)
    shapes = [(2, channels, 24, 40), (2, channels, 12, 20), (2, channels, 6, 10)]
    features = [jt.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    count = 37
    rois = np.concatenate([rng.integers(0, 2, (count, 1)), boxes_of(rng, count, 150, 200) - 20], 1).astype(np.float32)
    levels = rng.integers(0, 2, count).astype(np.int32)  # none on the last
    options = dict(size=(7, 5), scales=[0.25, 0.125, 0.0625], sampling=0, aligned=True)
    weights = jt.array(rng.standard_normal((count, channels, 7, 5)).astype(np.float32))
    results = []
    for impl in IMPLEMENTATIONS:
        poison()
        y = roi_align(features, rois, levels, impl=impl, **options)
        results.append([y.numpy(), *(g.numpy() for g in jt.grad((y * weights).sum(), features[:2]))])
    for got, wanted in zip(*results):
        close(got, wanted, 2e-6)
    y = roi_align(features, rois, levels, impl="fused", **options)
    assert not jt.grad((y * weights).sum(), features[2]).numpy().any()


@pytest.mark.parametrize("plain", (True, False))
@pytest.mark.parametrize("layout, block", (("nhwc", 32), ("nhwc", 70), ("blocked", 8), ("blocked", 16),
                                           ("blocked", 64)))
def test_roi_align_in_other_layouts(close, layout, block, plain):
    """The same numbers as in nchw, to the last bit: sums run in one order."""
    rng = np.random.default_rng(17)
    channels = block if layout == "nhwc" else 2 * block
    shapes = [(2, channels, 20, 28), (2, channels, 10, 14)]
    features = [jt.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    rois = np.concatenate([rng.integers(0, 2, (300, 1)), boxes_of(rng, 300, 90, 90) - 20], 1).astype(np.float32)
    levels = rng.integers(0, 2, 300).astype(np.int32)
    rois[7, 0], levels[8], rois[9, 1] = 5, 4, np.nan  # no such picture, no such level, no place
    options = dict(size=(7, 5), scales=[0.25, 0.125], sampling=2)
    weights = jt.array(rng.standard_normal((300, channels, 7, 5)).astype(np.float32))
    poison()
    y = roi_align(features, rois, levels, impl="fused", **options)
    wanted = [y.numpy(), *(g.numpy() for g in jt.grad((y * weights).sum(), features))]
    lying = [jt.array(_from_nchw(f, layout, block).numpy()) for f in features]
    for impl in IMPLEMENTATIONS if block < 16 else ["fused"]:
        kept = slice(None) if impl == "fused" else np.r_[:7, 10:60]  # the reference knows no wrong regions
        poison()
        y = roi_align(lying, rois[kept], levels[kept], layout=layout, plain=plain, impl=impl, **options)
        y = y if plain else _to_nchw(y, layout)
        assert tuple(y.shape) == tuple(wanted[0][kept].shape)
        if impl == "ref":
            close(y.numpy(), wanted[0][kept], 5e-6)
            continue
        assert np.array_equal(y.numpy(), wanted[0])
        for gradient, nchw in zip(jt.grad((y * weights).sum(), lying), wanted[1:]):
            assert np.array_equal(_to_nchw(gradient, layout).numpy(), nchw)


def test_roi_align_refuses():
    rois = np.zeros((1, 5), np.float32)
    with pytest.raises(ValueError, match="layout is 'hwc'"):
        roi_align([jt.ones((1, 2, 8, 8))], rois, size=(2, 2), scales=[1.0], layout="hwc")
    with pytest.raises(ValueError, match="expected nhwc of one B and C"):
        roi_align([jt.ones((1, 8, 8, 2)), jt.ones((1, 4, 4, 3))], rois, size=(2, 2), scales=[1.0, 0.5], layout="nhwc")
    with pytest.raises(ValueError, match="expected blocked of one B and C"):
        roi_align([jt.ones((1, 8, 8, 2))], rois, size=(2, 2), scales=[1.0], layout="blocked")


def test_roi_align_of_what_is_not_finite():
    rois = np.array([[0, np.nan, 0, 5, 5], [0, 0, 0, np.inf, 5], [3, 0, 0, 5, 5], [0, 0, 0, 3e38, 3e38]], np.float32)
    y = roi_align([jt.ones((1, 2, 8, 8))], rois, size=(2, 2), scales=[1.0]).numpy()
    assert np.isfinite(y).all() and not y[:3].any()


# -- paste_masks

@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("rule, name", (("expand", "tv"), ("grid", "mm")))
def test_pasted_masks_are_upstreams(stored, rule, name, impl):
    masks, boxes = stored["paste/prob"], stored["paste/boxes"]
    bits = np.unpackbits(stored[f"paste/{name}_bits"], axis=1)[:, :2000].reshape(8, 40, 50).astype(bool)
    poison()
    assert np.array_equal(paste_masks(masks, boxes, (40, 50), rule=rule, impl=impl), bits)
    values = paste_masks(masks, boxes, (40, 50), rule=rule, threshold=None, impl=impl)
    inside = bits if rule == "grid" else np.ones_like(bits)  # mmdetection cuts its values off beside the box on the CPU
    assert np.abs(values - stored[f"paste/{name}"])[inside].max() < 3e-6


def test_pasting_degenerate_boxes():
    masks = np.ones((4, 28, 28), np.float32)
    boxes = np.array([[5, 5, 5, 5], [9, 9, 3, 3], [-1e9, -1e9, 1e9, 1e9], [50, 50, 60, 60]], np.float32)
    for rule in ("expand", "grid"):
        got = [paste_masks(masks, boxes, (12, 14), rule=rule, impl=impl) for impl in IMPLEMENTATIONS]
        assert got[0].shape == (4, 12, 14) and got[0][2].all() and not got[0][3].any()
        assert np.array_equal(got[0][[0, 2, 3]], got[1][[0, 2, 3]]), rule


# -- sigmoid_focal_loss

@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_focal_loss_is_upstreams(stored, close, impl):
    logits = jt.array(stored["loss/focal_logits"].reshape(96, 1))
    labels = np.repeat(np.array([-1, 0], np.int32), 48)
    poison()
    loss = sigmoid_focal_loss(logits, labels, impl=impl)
    for name in ("focal", "focal_mm"):
        close(loss.numpy().reshape(2, 48), stored[f"loss/{name}"], 3e-6)
        close(jt.grad(loss.sum(), logits).numpy().reshape(2, 48), stored[f"loss/{name}/grad"], 3e-6)


@pytest.mark.parametrize("gamma", (2.0, 1.5, 0.0))
def test_focal_loss_of_many_classes(close, gamma):
    rng = np.random.default_rng(13)
    logits = (rng.standard_normal((57, 11)) * 4).astype(np.float32)
    labels = rng.integers(-2, 11, 57).astype(np.int32)
    x, one = logits.astype(np.float64), labels[:, None] == np.arange(11)
    p = 1 / (1 + np.exp(-x))
    pt, at = np.where(one, p, 1 - p), np.where(one, 0.3, 0.7)
    wanted = (at * (1 - pt) ** gamma * -np.log(pt)).sum(1) * (labels > -2)
    slope = at * np.where(one, 1, -1) * (gamma * (1 - pt) ** gamma * pt * np.log(pt) - (1 - pt) ** (gamma + 1))
    weights = rng.standard_normal(57).astype(np.float32)
    for impl in IMPLEMENTATIONS if gamma else ["fused"]:
        var = jt.array(logits)
        poison()
        loss = sigmoid_focal_loss(var, labels, alpha=0.3, gamma=gamma, impl=impl)
        close(loss.numpy(), wanted, 2e-6)
        gradient = jt.grad((loss * jt.array(weights)).sum(), var).numpy()
        close(gradient, slope * weights[:, None] * (labels > -2)[:, None], 2e-6)


def test_the_kernels_ran(monkeypatch):
    ran = []
    original = kernels.code
    monkeypatch.setattr(kernels, "code", lambda *a, **k: ran.append(k["kernel"]) or original(*a, **k))
    nms(np.ones((2, 4), np.float32), np.ones(2, np.float32), threshold=0.5)
    match_boxes(np.ones((2, 4), np.float32), np.ones((1, 4), np.float32), high=0.5, low=0.5)
    paste_masks(np.ones((1, 4, 4), np.float32), np.ones((1, 4), np.float32), (3, 3))
    roi_align([jt.ones((1, 1, 4, 4))], np.ones((1, 5), np.float32) * 0, size=(1, 1), scales=[1.0])
    sigmoid_focal_loss(jt.ones((2, 1)), np.zeros(2, np.int32))
    assert ran == [f"detection/{name}" for name in ("boxes", "boxes", "masks", "roi_align", "focal")]


def test_the_table_of_anchors_is_whole():
    assert len(json.loads((FIXTURES / "det_ops.json").read_text())["anchors"]) == 20
