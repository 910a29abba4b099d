"""Detectors against torchvision and mmdetection in four steps: dense outputs, proposals, heads, whole pipeline."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.models.detection import boxes as box_math
from jea.models.detection.detectors import Detector
from jea.models.detection.rpn import RPN
from jea.nn.fold import fuse
from jea.nn.formats import enter, max_pool, plain
from jea.nn.mode import evaluating

DENSE = 2e-5


def dense(case):
    """Everything that layers give, once per fixture."""
    if hasattr(case, "dense"):
        return case.dense
    model, found = case.model, {}
    with evaluating(model):
        x = jt.array(case.inputs["x"])
        body = model.backbone.body
        found["maxpool"] = plain(max_pool(body.bn1(body.conv1(enter(x, 64)), relu=True)))
        stages = [plain(stage) for stage in body(x)]
        found.update({f"C{k + 2}": c for k, c in enumerate(stages)})
        features = [plain(level) for level in model.backbone(x)]
        first = 2 if case.two_stage else 3
        found.update({f"P{first + k}": p for k, p in enumerate(features)})
        found["heads"] = model.rpn(features) if case.two_stage else model.head(features)
        found["features"] = features
        if case.two_stage:
            found["anchors"] = model.rpn.anchors(features, (96, 160))
        else:
            found["anchors"] = model.anchors(features, (96, 160))
    case.dense = found
    return found


def test_files_of_upstream_load_whole(case):
    assert not (case.report.missing or case.report.unexpected or case.report.mismatched or case.report.initialised)
    counters = [e for e in case.manifest["state"] if e["key"].endswith("num_batches_tracked")]
    assert len(case.report.loaded) == len(case.manifest["state"]) - len(counters)


def test_dense_outputs(case, close):
    found = dense(case)
    compared = 0
    for name in found:
        if f"dense/{name}" in case.arrays and name != "C5":
            close(case.probe(f"dense/{name}", found[name].numpy()), case.arrays[f"dense/{name}"], DENSE, name)
            compared += 1
    assert compared >= 8
    c5 = found["C5"].numpy()
    close(case.probe("dense/C5", c5), case.arrays["dense/C5"], DENSE, "C5")
    first, second = (v.numpy() for v in found["heads"])
    if case.two_stage:
        close(first, case.arrays["rpn/objectness"], DENSE, "objectness")
        close(second, case.arrays["rpn/deltas"], DENSE, "deltas")
        stored = case.arrays["rpn/anchors"]
    else:
        close(case.probe("retina/cls_logits", first), case.arrays["retina/cls_logits"], DENSE, "logits")
        close(second, case.arrays["retina/bbox_pred" if case.mmdet else "retina/bbox_regression"], DENSE, "deltas")
        stored = case.arrays["retina/anchors"]
    anchors = np.concatenate(found["anchors"])
    if case.mmdet:
        close(anchors, stored, 1e-6, "anchors")
    else:
        assert np.array_equal(anchors, stored)


def boxes_close(got, wanted, size):
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5 * max(size), np.abs(got - wanted).max()


def test_proposals_from_stored_outputs(case):
    anchors = dense(case)["anchors"]
    for k, size in enumerate(case.sizes):
        if case.two_stage:
            boxes, scores, rows = case.model.rpn.proposals(case.arrays["rpn/objectness"][k],
                                                           case.arrays["rpn/deltas"][k], anchors, size, training=False)
            assert np.array_equal(rows, case.arrays[f"rpn/index{k}"])
            boxes_close(boxes, case.arrays[f"rpn/proposals{k}"], size)
            assert np.abs(scores - case.arrays[f"rpn/scores{k}"]).max() < 1e-5
            continue
        steps = case.arrays["retina/bbox_pred" if case.mmdet else "retina/bbox_regression"][k]
        logits = np.full((len(steps), case.model.head.outputs), -20, np.float32)
        logits.reshape(-1)[case.arrays[f"retina/above_index{k}"]] = case.arrays[f"retina/above_logit{k}"]
        original = case.originals[k]
        scale = (size[1] / original[1], size[0] / original[0])
        boxes, scores, labels, rows = case.model.picture(logits, steps, anchors, size, scale)
        assert np.array_equal(rows, case.arrays[f"det/index{k}"])
        assert np.array_equal(labels, case.arrays[f"det/labels{k}"] - case.offset)
        if case.mmdet:
            boxes = Detector.rescaled(boxes, size, original, case.model.style)
        boxes_close(boxes, case.arrays[f"det/boxes{k}"], original)
        assert np.abs(scores - case.arrays[f"det/scores{k}"]).max() < 1e-5


@pytest.mark.only("two stages")
def test_heads_on_stored_proposals(case, close):
    heads, features, arrays = case.model.roi_heads, dense(case)["features"], case.arrays
    proposals = [arrays[f"rpn/proposals{k}"] for k in range(2)]
    together, pictures = np.concatenate(proposals), np.repeat([0, 1], [len(p) for p in proposals])
    assert np.array_equal(box_math.levels_of(together, case.model.style), arrays["roi/level"])
    with evaluating(case.model):
        pooled = heads.pool(features, together, pictures, 7)[:len(together)]
        close(case.probe("roi/pooled", pooled.numpy()), arrays["roi/pooled"], DENSE, "pooled")
        hidden = "roi/fc2" if case.mmdet else "roi/fc7"
        close(case.probe(hidden, heads.box_head(pooled).numpy()), arrays[hidden], DENSE, hidden)
        logits, steps = (v.numpy() for v in heads.predict(features, together, pictures))
    close(logits, arrays["roi/cls_logits"], DENSE, "logits")
    close(steps, arrays["roi/box_deltas"], DENSE, "steps")


@pytest.mark.only("two stages")
def test_heads_on_all_levels(case, close):
    heads, features, arrays = case.model.roi_heads, dense(case)["features"], case.arrays
    boxes = [case.inputs[f"levels/boxes{k}"] for k in range(2)]
    together, pictures = np.concatenate(boxes), np.repeat([0, 1], [len(b) for b in boxes])
    levels = box_math.levels_of(together, case.model.style)
    assert np.array_equal(levels, arrays["levels/level"]) and set(levels) == {0, 1, 2, 3}
    with evaluating(case.model):
        for what, side in (("levels/pooled", 7), ("levels/mask_pooled", 14))[:1 + case.masks]:
            pooled = heads.pool(features, together, pictures, side)[:len(together)].numpy()
            close(case.probe(what, pooled), arrays[what], DENSE, what)
        close(heads.predict(features, together, pictures)[0].numpy(), arrays["levels/cls_logits"], DENSE, "logits")


@pytest.mark.only("two stages")
def test_detections_from_stored_heads(case):
    heads, arrays, start = case.model.roi_heads, case.arrays, 0
    for k, (size, original) in enumerate(zip(case.sizes, case.originals)):
        proposals = arrays[f"rpn/proposals{k}"]
        part = slice(start, start + len(proposals))
        start += len(proposals)
        scale = (size[1] / original[1], size[0] / original[0])
        boxes, scores, labels, rows = heads.detect(proposals, arrays["roi/cls_logits"][part],
                                                   arrays["roi/box_deltas"][part], size, scale)
        assert np.array_equal(rows, arrays[f"det/index{k}"])
        assert np.array_equal(labels, arrays[f"det/labels{k}"] - case.offset)
        boxes_close(boxes, arrays[f"det/boxes{k}"], size)
        assert np.abs(scores - arrays[f"det/scores{k}"]).max() < 1e-5


@pytest.mark.only("masks")
def test_masks_of_stored_detections(case, close):
    heads, features, arrays = case.model.roi_heads, dense(case)["features"], case.arrays
    boxes = [arrays[f"det/boxes{k}"] for k in range(2)]
    together, pictures = np.concatenate(boxes), np.repeat([0, 1], [len(b) for b in boxes])
    with evaluating(case.model):
        pooled = heads.pool(features, together, pictures, 14)[:len(together)]
        close(case.probe("mask/pooled", pooled.numpy()), arrays["mask/pooled"], DENSE, "pooled")
        close(case.probe("mask/logits", heads.mask_logits(features, together, pictures).numpy()), arrays["mask/logits"],
              DENSE, "logits")
        found = heads.mask_probabilities(features, boxes, [arrays[f"det/labels{k}"].astype(int) - case.offset
                                                           for k in range(2)])
    for k in range(2):
        stored = arrays[f"mask/prob{k}"]
        close(found[k][:len(stored)], stored, DENSE, "probabilities")


@pytest.mark.parametrize("fused", (False, True), ids=("plain", "fused"))
def test_whole_pipeline(case, fused):
    model = fuse(case.model) if fused else case.model
    with evaluating(model):
        results = model(jt.array(case.inputs["x"]), case.sizes, case.originals)
    for k, (got, original) in enumerate(zip(results, case.originals)):
        wanted = {name: case.arrays[f"final/{name}{k}"] for name in ("boxes", "scores", "labels")}
        assert (np.diff(got["scores"]) <= 0).all()
        quality = box_math_iou(wanted["boxes"], got["boxes"])
        same = wanted["labels"][:, None] - case.offset == got["labels"][None]
        near = np.abs(wanted["scores"][:, None] - got["scores"][None]) < 1e-3
        partner = (quality > 0.99) & same & near
        assert partner.any(1).all(), f"{(~partner.any(1)).sum()} boxes are lost"
        assert len(got["boxes"]) == len(wanted["boxes"])
        if not case.masks:
            continue
        assert got["masks"].dtype == bool and got["masks"].shape == (len(got["boxes"]), *original)
        first = partner.argmax(1)
        bits = np.unpackbits(case.arrays[f"final/masks{k}"], axis=1)[:, :original[0] * original[1]].astype(bool)
        masks = got["masks"].reshape(len(got["masks"]), -1)[first[:len(bits)]]
        assert (masks != bits).mean() <= 1e-3
        pixels = got["masks"].sum((1, 2))[first]
        assert np.abs(pixels - case.arrays[f"final/mask_pixels{k}"]).sum() <= 1e-3 * bits.shape[1] * len(pixels)


def box_math_iou(a, b):
    from jea.ops.detection import iou_matrix
    return iou_matrix(a.astype(np.float64), b.astype(np.float64))


class Everything:
    """A sampler that leaves nothing to chance, or takes the indices of a fixture."""

    def __init__(self, arrays=None):
        self.arrays, self.seen = arrays, {}

    def choose(self, kind, picture, positives, negatives, count, share):
        self.seen[kind, picture] = (positives, negatives)
        if self.arrays is None:
            return positives, negatives
        return tuple(self.arrays[f"sampled/{kind}_{sign}{picture}"] for sign in ("pos", "neg"))


TERMS = {"rpn_objectness_loss": ("loss_objectness", "loss_rpn_cls"),
         "rpn_boxes_loss": ("loss_rpn_box_reg", "loss_rpn_bbox"),
         "classes_loss": ("loss_classifier", "loss_cls", "classification"),
         "boxes_loss": ("loss_box_reg", "loss_bbox", "bbox_regression"), "masks_loss": ("loss_mask",),
         "loss": ("loss_sum",)}


def check_losses(case, losses, run):
    compared = 0
    for name, theirs in TERMS.items():
        for other in theirs:
            if f"{run}/{other}" in case.arrays:
                wanted = float(case.arrays[f"{run}/{other}"].reshape(-1)[0])
                got = losses[name].item()
                assert abs(got - wanted) <= 1e-5 * abs(wanted), f"{run} {name}: {got}, wanted {wanted}"
                compared += 1
    assert compared == len(losses) == {(True, True): 6, (True, False): 5, (False, False): 3}[case.two_stage, case.masks]


def test_training(case, close):
    """Losses and gradients with everything sampled."""
    model, arrays = case.model, case.arrays
    sampler = Everything()
    losses = model.losses(jt.array(case.inputs["x"]), case.sizes, case.truths, sampler=sampler)
    check_losses(case, losses, "train")
    state = model.state_dict()
    renamed = {key_of(model, case, key): key for key in case.manifest["grad_keys"]}
    keys = list(renamed)
    gradients = jt.grad(losses["loss"], [state[key] for key in keys])
    tolerance = 3e-3 if case.name == "mm_maskrcnn_r50_fpn" else 5e-4
    for key, gradient in zip(keys, gradients):
        theirs = f"train/grad/{renamed[key]}"
        close(case.probe(theirs, gradient.numpy()), arrays[theirs], tolerance, theirs)
    if case.two_stage and not case.mmdet:
        for k in range(2):
            labels = np.full(len(arrays[f"train/anchor_labels{k}"]), -1)
            positives, negatives = sampler.seen["rpn", k]
            labels[positives], labels[negatives] = 1, 0
            assert np.array_equal(labels, arrays[f"train/anchor_labels{k}"])
    frozen = {key_of(model, case, key) for key in case.manifest["without_gradient"]}
    assert frozen and all(state[key].is_stop_grad() for key in frozen)


@pytest.mark.only("two stages")
def test_training_with_stored_samples(case):
    losses = case.model.losses(jt.array(case.inputs["x"]), case.sizes, case.truths, sampler=Everything(case.arrays))
    check_losses(case, losses, "sampled")


def key_of(model, case, key):
    if not case.mmdet:
        return key
    from jea.checkpoint import keymap
    return keymap.select(model.key_maps, [e["key"] for e in case.manifest["state"]]).to_ours(key)


@pytest.mark.only("stored matches")
def test_anchor_matches(case):
    names = [f"train/anchor_match{k}" for k in range(2)]
    owner = case.model.rpn if case.two_stage else case.model
    found = dense(case)
    grids = RPN.grids(found["features"])
    for k, name in enumerate(names):
        _, matches = owner.matches(found["anchors"], grids, case.sizes[k], case.truths[k])
        wanted = case.arrays[name].astype(int)
        if case.mmdet:
            wanted = np.where(wanted > 0, wanted - 1, np.where(wanted == 0, -1, -2))
        assert np.array_equal(matches, wanted)


@pytest.mark.only("two stages")
def test_training_proposals(case):
    found = dense(case)
    for k, size in enumerate(case.sizes):
        boxes, _, _ = case.model.rpn.proposals(case.arrays["rpn/objectness"][k], case.arrays["rpn/deltas"][k],
                                               found["anchors"], size, training=True)
        boxes_close(boxes, case.arrays[f"train/proposals{k}"], size)
