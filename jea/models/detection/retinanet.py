"""RetinaNet: dense boxes with focal loss, in the styles of torchvision and mmdetection."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np

from jea._jittor import jt, nn
from jea.models.detection import boxes as box_math
from jea.models.detection.backbone import Backbone, init_normal
from jea.models.detection.detectors import Detector, _check_classes, _pair
from jea.models.detection.key_maps import key_maps_of
from jea.models.detection.losses import shared_count, smooth_l1, total
from jea.models.detection.roi_heads import SCORE, detections
from jea.models.detection.rpn import RPN, UNIT, by_cell
from jea.models.detection.styles import style_of
from jea.nn.blocks import Conv
from jea.ops.detection import match_boxes, sigmoid_focal_loss

FIRST_STRIDE = 8
ANCHORS = 9
PRIOR = 0.01  # of an anchor to be an object, at the start of training


class _Tower(nn.Module):
    """Four 3x3 convolutions with ReLU and one for the outputs, shared by all levels."""

    def __init__(self, channels: int, name: str, outputs: int, bias: float):
        self.conv = nn.Sequential(*(nn.Sequential(Conv(channels, channels, 3, padding=1)) for _ in range(4)))
        self.last = name
        setattr(self, name, Conv(channels, outputs, 3, padding=1))
        for block in self.conv:
            init_normal(block[0], 0.01)
        init_normal(getattr(self, name), 0.01, bias)

    def execute(self, x):
        for block in self.conv:
            x = block[0](x, relu=True)
        return getattr(self, self.last)(x)


class _Head(nn.Module):
    def __init__(self, channels: int, outputs: int):
        self.outputs = outputs
        self.classification_head = _Tower(channels, "cls_logits", ANCHORS * outputs, -math.log((1 - PRIOR) / PRIOR))
        self.regression_head = _Tower(channels, "bbox_reg", 4 * ANCHORS, 0.0)

    def execute(self, features):
        logits = jt.concat([by_cell(self.classification_head(x), self.outputs) for x in features], 1)
        return logits, jt.concat([by_cell(self.regression_head(x), 4) for x in features], 1)


class RetinaNet(Detector):
    """Boxes in one stage.

    In torchvision's style output 0 of the 91 is no class: files of theirs never answer with it. A network that does
    gives the label -1.

    Args:
        rpn_pre_nms: boxes of a level before NMS, in testing (the second number; there are none in training).
        detections_per_image: at most; default: the style's, 300 (torchvision) or 100.
        channels: of the pyramid and the heads. The others are as in FasterRCNN.
    """

    def __init__(self, *, num_classes: int = 80, style: str = "torchvision", attention: str = "external",
                 attention_stage: int = 4, live_attention: bool = True, zero_attention: bool = False,
                 norm: str = "frozen", norm_eps: float = 1e-5, frozen_stages: int = 1,
                 rpn_pre_nms: Sequence[int] = (1000, 1000), detections_per_image: Optional[int] = None,
                 layers: Sequence[int] = (3, 4, 6, 3), width: int = 64,
                 channels: int = 256):
        _check_classes(num_classes)
        self.num_classes, self.style = num_classes, style_of(style)
        self.candidates = _pair("rpn_pre_nms", rpn_pre_nms)[1]
        self.detections = detections_per_image or self.style.retina_detections
        self.backbone = Backbone(layers, width, channels, style=self.style, retina=True, norm=norm, norm_eps=norm_eps,
                                 frozen_stages=frozen_stages, attention=attention, attention_stage=attention_stage,
                                 live_attention=live_attention, zero_attention=zero_attention)
        self.head = _Head(channels, num_classes + self.style.offset)
        self.key_maps = key_maps_of(two_stage=False, attention=attention == "external", style=self.style)

    def anchors(self, features, padded) -> tuple:
        """The anchors of each level."""
        sizes = tuple(box_math.retina_sizes(self.style, len(features)))
        return box_math.anchors(sizes, RPN.grids(features), tuple(padded), FIRST_STRIDE, self.style)

    def dense(self, images) -> tuple:
        """Logits (B, A, outputs) and steps (B, A, 4) of all anchors, and the anchors and grids of the levels."""
        features = self.backbone(images)
        return (*self.head(features), self.anchors(features, images.shape[2:]), RPN.grids(features))

    def detect(self, images, sizes, originals) -> list:
        logits, steps, anchors, _ = self.dense(images)
        logits, steps, results = logits.numpy(), steps.numpy(), []
        for k, (size, original) in enumerate(zip(sizes, originals)):
            boxes, scores, labels, _ = self.picture(logits[k], steps[k], anchors, size,
                                                    (size[1] / original[1], size[0] / original[0]))
            results.append({"boxes": self.rescaled(boxes, size, original, self.style), "scores": scores,
                            "labels": labels})
        return results

    def picture(self, logits, steps, anchors, size, scale) -> tuple:
        """The detections of one picture: (boxes in the batch's pixels, scores, labels, rows of the anchors), numpy."""
        style, outputs, start, found = self.style, self.head.outputs, 0, []
        for level_anchors in anchors:
            end = start + len(level_anchors)
            scores = box_math.sigmoid(logits[start:end].reshape(-1))
            above = np.flatnonzero(scores > np.float32(SCORE))
            above = above[box_math.best_first(scores[above], self.candidates)]
            rows = above // outputs
            boxes = box_math.decode(level_anchors[rows], steps[start:end][rows][:, None], UNIT, style)[:, 0]
            found.append((box_math.clip(boxes, size), scores[above], above + start * outputs))
            start = end
        boxes, scores, rows = (np.concatenate(parts) for parts in zip(*found))
        if style.exclusive:
            kept = box_math.large_enough(boxes, 0.0, True)
            boxes, scores, rows = boxes[kept], scores[kept], rows[kept]
        boxes, scores, labels, rows = detections(
            boxes, scores, outputs, scale=scale, original=style.suppress_original, limit=self.detections, rows=rows,
            style=_without_smallest(style))
        return boxes, scores, labels - style.offset, rows

    def matches(self, anchors, grids, size, truth) -> tuple:
        """(rows of the trained anchors, their matches: the truth's row, -1 background, -2 neither)."""
        trained = np.flatnonzero(box_math.trained_anchors(anchors, grids, size, FIRST_STRIDE, self.style))
        matches, _ = match_boxes(np.concatenate(anchors)[trained], truth.boxes, high=0.5, low=0.4,
                                 low_quality=self.style.low_quality, least=self.style.retina_least)
        return trained, matches

    def parts(self, images, sizes, truths, sampler) -> dict:
        """{"classes": focal loss, "boxes": L1}, over the number of positives."""
        logits, steps, anchors, grids = self.dense(images)
        b, count, outputs = logits.shape
        together, style = np.concatenate(anchors), self.style
        labels, wanted = np.full((b, count), -2, np.int32), np.zeros((b, count, 4), np.float32)
        weight = np.zeros((b, count, 1), np.float32)
        for k, (size, truth) in enumerate(zip(sizes, truths)):
            trained, matches = self.matches(anchors, grids, size, truth)
            labels[k, trained[matches == -1]] = -1
            rows, own = trained[matches >= 0], matches[matches >= 0]
            labels[k, rows], weight[k, rows] = truth.labels[own] + style.offset, 1
            wanted[k, rows] = box_math.encode(together[rows], truth.boxes[own], UNIT)
        positives = np.maximum(weight.sum((1, 2)), 1)
        share = 1 / (b * positives) if style.retina_per_picture else np.full(b, 1 / shared_count(positives.sum()))
        share = jt.array(share.astype(np.float32).reshape(b, 1))
        focal = sigmoid_focal_loss(logits.reshape(b * count, outputs), labels.reshape(-1)).reshape(b, count)
        away = smooth_l1(steps - jt.array(wanted), 0.0) * jt.array(weight)
        return {"classes": total(focal * share), "boxes": total(away.sum(2) * share)}


def _without_smallest(style):
    from dataclasses import replace
    return replace(style, smallest_box=None)
