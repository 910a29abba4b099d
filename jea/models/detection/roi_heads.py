"""What stands on proposals: boxes and classes, once or in a cascade, and masks."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.models.detection import boxes as box_math
from jea.models.detection.backbone import init_normal
from jea.models.detection.losses import binary_cross_entropy, cross_entropy_rows, shared_count, smooth_l1, total
from jea.models.detection.sampling import Regions, joined, regions_of
from jea.nn.blocks import Conv, Linear
from jea.nn.fold import Foldable
from jea.nn.formats import chosen, convolution, enter, plain
from jea.ops import pack_conv, transpose
from jea.ops.detection import nms, roi_align
from jea.ops.products.half import single

BOX_SIZE, MASK_SIZE = 7, 14
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
ONCE = (((0.1, 0.1, 0.2, 0.2), 0.5, 1.0),)  # deviations of the steps, IoU of a positive, weight of the losses
CASCADE = (*ONCE, ((0.05, 0.05, 0.1, 0.1), 0.6, 0.5), ((0.033, 0.033, 0.067, 0.067), 0.7, 0.25))
SCORE, OVERLAP = 0.05, 0.5  # of detections: the least score, and the IoU above which the worse one goes
STEP = 32  # numbers of regions are rounded up to it: each new number would make oneDNN prepare its convolutions anew


class BoxHead(nn.Module):
    """Two hidden layers on pooled features."""

    def __init__(self, channels: int, hidden: int):
        self.fc6 = Linear(channels * BOX_SIZE ** 2, hidden)
        self.fc7 = Linear(hidden, hidden)

    def execute(self, pooled):
        return nn.relu(self.fc7(nn.relu(self.fc6(pooled.reshape(pooled.shape[0], -1)))))


class BoxPredictor(nn.Module):
    """Class logits and steps of the boxes."""

    def __init__(self, hidden: int, classes: int, boxes: int):
        self.cls_score = Linear(hidden, classes)
        self.bbox_pred = Linear(hidden, 4 * boxes)
        init_normal(self.cls_score, 0.01)
        init_normal(self.bbox_pred, 0.001)

    def execute(self, hidden):
        return self.cls_score(hidden), self.bbox_pred(hidden)


class Doubling(Foldable):
    """relu(transposed convolution 2x2 with stride 2); the weight is (in, out, 2, 2), as PyTorch keeps it.

    Each cell gives four of its own, so that it is a 1x1 convolution with four times the outputs: (N, C, H, W) -> (N, 4
    C', H, W), the four parts a cell's upper left, upper right, lower left and lower right.
    """

    packed = None

    def __init__(self, in_channels: int, out_channels: int):
        self.weight = jt.randn((in_channels, out_channels, 2, 2)) * math.sqrt(2 / (4 * in_channels))
        self.bias = jt.zeros((out_channels,))
        self.out_channels = out_channels

    def execute(self, x):
        weight, bias = (None, None) if self.packed else self.as_convolution()
        return convolution(x, weight, bias, relu=True, packed=self.packed)

    def as_convolution(self) -> tuple:
        """Its weight (4 out, in, 1, 1) and bias."""
        weight = transpose(self.weight, (2, 3, 1, 0)).reshape(4 * self.out_channels, -1, 1, 1)
        return weight, jt.concat([self.bias] * 4)

    def pack(self, dtype: str) -> None:
        if chosen().layout == "nhwc" and not jt.flags.use_cuda:
            self.packed = pack_conv(*self.as_convolution(), size=(MASK_SIZE,) * 2, dtype=dtype)
            self.weight = self.bias = None


class MaskPredictor(nn.Module):
    """Twice the size, then a logit for each class: an Activation (N, C, H, W) -> (N, classes, 2 H, 2 W)."""

    def __init__(self, channels: int, classes: int):
        self.conv5_mask = Doubling(channels, channels)
        self.mask_fcn_logits = Conv(channels, classes, 1)
        fan_out(self.mask_fcn_logits)

    def execute(self, x):
        n, _, h, w = x.shape
        x = self.conv5_mask(x)
        *before, channels = x.var.shape
        if x.layout == "nhwc":  # the four parts of a cell as cells beside it
            x = self.mask_fcn_logits(x.like(x.var.reshape(n, h, 4 * w, channels // 4)), wide=True).var
            return transpose(x.reshape(n, h, w, 2, 2, -1), (0, 5, 1, 3, 2, 4)).reshape(n, -1, 2 * h, 2 * w)
        before[:2] = 4 * n, before[1] // 4  # as pictures of their own
        x = plain(self.mask_fcn_logits(x.like(x.var.reshape(*before, channels)), wide=True))
        return transpose(x.reshape(n, 2, 2, -1, h, w), (0, 3, 4, 1, 5, 2)).reshape(n, -1, 2 * h, 2 * w)


def fan_out(conv) -> None:
    init_normal(conv, math.sqrt(2 / (conv.weight.shape[0] * math.prod(conv.weight.shape[2:]))))


def mask_head(channels: int):
    """Four 3x3 convolutions, each followed by a ReLU."""
    convs = [Conv(channels, channels, 3, padding=1) for _ in range(4)]
    for conv in convs:
        fan_out(conv)
    return nn.Sequential(*(nn.Sequential(conv) for conv in convs))


class RoIHeads(nn.Module):
    """The heads of Faster, Mask, Cascade and Cascade Mask R-CNN.

    Args:
        channels: of the levels; hidden: of the box head. num_classes: without background.
        cascade: three stages whose boxes have no class, each on what the stage before made; else one.
        masks: with a mask head, in a cascade with three.
        samples: proposals of a picture that train the boxes, a quarter of them positive at most.
        detections: at most so many of a picture.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int, *, style, cascade: bool, masks: bool, samples: int,
                 detections: int):
        self.num_classes, self.style, self.samples, self.detections = num_classes, style, samples, detections
        self.stages, self.masks, self.cascade = CASCADE if cascade else ONCE, masks, cascade
        rows = num_classes + style.offset

        def many(make):
            return nn.Sequential(*(make() for _ in self.stages)) if cascade else make()
        self.box_head = many(lambda: BoxHead(channels, hidden))
        self.box_predictor = many(lambda: BoxPredictor(hidden, num_classes + 1, 1 if cascade else rows))
        if masks:
            self.mask_head = many(lambda: mask_head(channels))
            self.mask_predictor = many(lambda: MaskPredictor(channels, rows))

    def of_stage(self, name: str, stage: int):
        module = getattr(self, name)
        return module[stage] if self.cascade else module

    # -- layers

    def pool(self, features, boxes, pictures, size: int, *, plain: bool = True):
        """Levels P2 to P5, Vars or Activations, and boxes (N, 4) of pictures (N,) -> (N', C, size, size), N' >= N; see
        STEP. A Var; with plain=False an Activation."""
        n, first = len(boxes), enter(features[0])
        rois = np.zeros((-(-n // STEP) * STEP, 5), np.float32)
        rois[:n, 0], rois[:n, 1:] = pictures, boxes
        levels = np.zeros(len(rois), np.int32)
        levels[:n] = box_math.levels_of(boxes, self.style)
        y = roi_align([single(enter(f).to(first.layout).var) for f in features[:4]], rois, levels, size=(size, size),
                      scales=SCALES, sampling=self.style.sampling, aligned=self.style.aligned, layout=first.layout,
                      plain=plain)
        return y if plain else first.like(y)

    def predict(self, features, boxes, pictures, stage: int = 0) -> tuple:
        """Class logits (N, K + 1) and steps (N, 4 or 4 K) of boxes."""
        hidden = self.of_stage("box_head", stage)(self.pool(features, boxes, pictures, BOX_SIZE))
        logits, steps = self.of_stage("box_predictor", stage)(hidden)
        return logits[:len(boxes)], steps[:len(boxes)]

    def mask_logits(self, features, boxes, pictures, stage: int = 0):
        """Mask logits of boxes, (N, K, 28, 28)."""
        x = self.pool(features, boxes, pictures, MASK_SIZE, plain=False)
        for block in self.of_stage("mask_head", stage):
            x = block[0](x, relu=True)
        return self.of_stage("mask_predictor", stage)(x)[:len(boxes)]

    # -- inference

    def detect(self, proposals, logits, steps, size, scale) -> tuple:
        """The detections of one picture: (boxes in the batch's pixels, scores, labels, rows of the proposals).

        All numpy. scale: factors (width, height) from the original picture to the batch's.
        """
        style = self.style
        probabilities = box_math.softmax(logits)
        foreground = probabilities[:, style.offset:style.offset + self.num_classes]
        boxes = box_math.decode(proposals, steps.reshape(len(steps), steps.shape[1] // 4, 4), self.stages[-1][0], style)
        boxes = box_math.clip(boxes, size)
        boxes = np.repeat(boxes, self.num_classes, 1) if self.cascade else boxes[:, style.offset:]
        return detections(boxes.reshape(-1, 4), foreground.reshape(-1), self.num_classes, style=style, scale=scale,
                          original=style.suppress_original and not self.masks, limit=self.detections)

    def refined(self, boxes, logits, steps, size, stage: int) -> np.ndarray:
        """The boxes that the next stage gets."""
        moved = box_math.decode(boxes, steps[:, None], self.stages[stage][0], self.style)
        return box_math.clip(moved[:, 0], size)

    def run(self, features, proposals, sizes) -> list:
        """What `detect` takes of each picture: (boxes, logits, steps), numpy. In a cascade the boxes of the last stage
        and the mean of all stages' logits."""
        counts = [len(p) for p in proposals]
        if not sum(counts):
            columns = 1 if self.cascade else self.num_classes + self.style.offset
            return [(p, np.zeros((0, self.num_classes + 1), np.float32), np.zeros((0, 4 * columns), np.float32))
                    for p in proposals]
        pictures, cuts = np.repeat(np.arange(len(proposals)), counts), np.cumsum(counts)[:-1]
        boxes, seen = np.concatenate(proposals), []
        for stage in range(len(self.stages)):
            logits, steps = (v.numpy() for v in self.predict(features, boxes, pictures, stage))
            seen.append(logits)
            if stage < len(self.stages) - 1:
                boxes = np.concatenate([
                    self.refined(*part, size, stage)
                    for *part, size in zip(np.split(boxes, cuts), np.split(logits, cuts), np.split(steps, cuts),
                                           sizes)])
        mean = sum(seen[1:], seen[0]) / np.float32(len(seen))
        return list(zip(*(np.split(v, cuts) for v in (boxes, mean, steps))))

    def mask_probabilities(self, features, boxes, labels) -> list:
        """The masks of each picture's detections, numpy (N, 28, 28): means over the stages of a cascade."""
        counts = [len(b) for b in boxes]
        if not sum(counts):
            return [np.zeros((0, 2 * MASK_SIZE, 2 * MASK_SIZE), np.float32) for _ in boxes]
        pictures = np.repeat(np.arange(len(boxes)), counts)
        together, channels = np.concatenate(boxes), np.concatenate(labels) + self.style.offset
        seen = [box_math.sigmoid(self.mask_logits(features, together, pictures, stage).numpy()
                                 [np.arange(len(channels)), channels]) for stage in range(len(self.stages))]
        return np.split(sum(seen[1:], seen[0]) / np.float32(len(seen)), np.cumsum(counts)[:-1])

    # -- training

    def losses(self, features, proposals, sizes, truths, sampler) -> dict:
        """{"classes", "boxes", "masks"}, summed over the stages."""
        found: dict = {}
        for stage, (deviations, threshold, weight) in enumerate(self.stages):
            kind = f"roi{stage}" if self.cascade else "roi"
            regions = joined([
                regions_of(picture, proposals[picture], truth, sampler, kind=kind, style=self.style,
                           threshold=threshold, low_quality=self.masks and self.style.mask_low_quality,
                           deviations=deviations, count=self.samples) for picture, truth in enumerate(truths)])
            logits, steps = self.predict(features, regions.boxes, regions.pictures, stage)
            terms = self.box_losses(logits, steps, regions)
            if self.masks:
                terms["masks"] = self.mask_loss(features, regions, truths, stage)
            for name, term in terms.items():
                found[name] = found.get(name, 0.0) + term * weight
            if stage < len(self.stages) - 1:
                logits, steps = logits.numpy(), steps.numpy()
                proposals = []
                for picture, size in enumerate(sizes):
                    rows = (regions.pictures == picture) & ~(regions.is_truth & (regions.labels >= 0))
                    proposals.append(self.refined(regions.boxes[rows], logits[rows], steps[rows], size, stage))
        return found

    def box_losses(self, logits, steps, regions: Regions) -> dict:
        """Mean cross-entropy of the regions, and the steps of the positives over the number of all regions."""
        style, n = self.style, len(regions.boxes)
        background = 0 if style.background_first else self.num_classes
        outputs = np.where(regions.labels >= 0, regions.labels + style.offset, background)
        wanted, weight = (np.zeros((n, steps.shape[1] // 4, 4), np.float32) for _ in range(2))
        rows = np.flatnonzero(regions.labels >= 0)
        columns = np.zeros(len(rows), np.int64) if self.cascade else outputs[rows]
        wanted[rows, columns], weight[rows, columns] = regions.steps[rows], 1
        away = smooth_l1(steps - jt.array(wanted.reshape(n, -1)), style.box_beta) * jt.array(weight.reshape(n, -1))
        number = shared_count(n)
        return {"classes": total(cross_entropy_rows(logits, outputs)) / number, "boxes": total(away) / number}

    def mask_loss(self, features, regions: Regions, truths, stage: int):
        """Mean binary cross-entropy of the positives' masks, of their class."""
        rows = np.flatnonzero(regions.labels >= 0)
        number, side = shared_count(len(rows)), 2 * MASK_SIZE
        if not len(rows):
            return total(plain(features[0])[:1, :1, :1, :1]) * 0.0
        boxes, pictures = regions.boxes[rows], regions.pictures[rows]
        targets = np.zeros((len(rows), side, side), np.float32)
        for picture, truth in enumerate(truths):
            own = np.flatnonzero(pictures == picture)
            if len(own):
                targets[own] = mask_targets(truth.masks, boxes[own], regions.rows[rows[own]], side, self.style)
        logits = self.mask_logits(features, boxes, pictures, stage)
        one = np.zeros((len(rows), logits.shape[1], 1, 1), np.float32)
        one[np.arange(len(rows)), regions.labels[rows] + self.style.offset] = 1
        own = (logits * jt.array(one)).sum(1)
        return total(binary_cross_entropy(own, jt.array(targets))) / (number * side * side)


def mask_targets(masks, boxes, rows, side: int, style) -> np.ndarray:
    """The part of each box's mask, (N, side, side), by RoIAlign with as many samples as there are pixels."""
    rois = np.concatenate([rows[:, None].astype(np.float32), boxes], 1)
    with jt.no_grad():
        parts = roi_align([jt.array(np.ascontiguousarray(masks, np.float32)[:, None])], rois, size=(side, side),
                          scales=(1.0,), sampling=0, aligned=style.aligned).numpy()[:, 0]
    return (parts >= 0.5).astype(np.float32) if style.binary_targets else parts


def detections(boxes, scores, classes: int, *, style, scale, original: bool, limit: int, rows=None) -> tuple:
    """The best of scored boxes: (boxes (N, 4) in the batch's pixels, scores, labels, rows of the scored boxes /
    classes).

    boxes (M, 4), scores (M,), entry m being of class m % classes; or with `rows` (M,) of class rows % classes.
    """
    rows = np.arange(len(scores)) if rows is None else rows
    kept = np.flatnonzero(scores > np.float32(SCORE))
    kept = kept[box_math.large_enough(boxes[kept], style.smallest_box, False)]
    factor = np.array([*scale, *scale], np.float32)
    seen = boxes[kept] * (np.float32(1) / factor) if original else boxes[kept]
    labels = (rows[kept] % classes).astype(np.int32)
    best = nms(seen, scores[kept], labels, threshold=OVERLAP)[:limit]
    return boxes[kept[best]], scores[kept[best]], labels[best].astype(np.int64), rows[kept[best]] // classes
