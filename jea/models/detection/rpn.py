"""Region proposal network: which anchors hold an object, and how to move them."""
from __future__ import annotations

import numpy as np

from jea._jittor import jt, nn
from jea.models.detection import boxes as box_math
from jea.models.detection.backbone import init_normal
from jea.models.detection.losses import binary_cross_entropy, shared_count, smooth_l1, total
from jea.nn.blocks import Conv
from jea.nn.formats import Activation, plain
from jea.ops import transpose
from jea.ops.detection import match_boxes, nms
from jea.ops.products.half import single

FIRST_STRIDE = 4
UNIT = (1.0, 1.0, 1.0, 1.0)


def by_cell(x, per_anchor: int):
    """(B, A K, H, W) -> (B, H W A, K): rows of the grid outside, anchors of a cell inside."""
    b, channels, h, w = x.shape
    last = single(x.var) if isinstance(x, Activation) and x.layout == "nhwc" else transpose(plain(x), (0, 2, 3, 1))
    return last.reshape(b, h * w * (channels // per_anchor), per_anchor)


class RPNHead(nn.Module):
    """A 3x3 convolution with ReLU, then objectness and four steps for each of the three anchors; shared by all
    levels."""

    def __init__(self, channels: int):
        anchors = len(box_math.RATIOS)
        self.conv = nn.Sequential(nn.Sequential(Conv(channels, channels, 3, padding=1)))
        self.cls_logits = Conv(channels, anchors, 1)
        self.bbox_pred = Conv(channels, 4 * anchors, 1)
        for layer in (self.conv[0][0], self.cls_logits, self.bbox_pred):
            init_normal(layer, 0.01)

    def execute(self, features):
        hidden = [self.conv[0][0](x, relu=True) for x in features]
        objectness = jt.concat([by_cell(self.cls_logits(x), 1) for x in hidden], 1).squeeze(2)
        return objectness, jt.concat([by_cell(self.bbox_pred(x), 4) for x in hidden], 1)


class RPN(nn.Module):
    """The head, its proposals and its losses.

    Args:
        channels: of the levels. style: see styles.py.
        pre_nms, post_nms: proposals of a level before, and of a picture after NMS: (training, testing).
        samples: anchors of a picture that train the objectness, half of them positive at most.
    """

    def __init__(self, channels: int, *, style, pre_nms, post_nms, samples: int):
        self.head = RPNHead(channels)
        self.style, self.pre_nms, self.post_nms, self.samples = style, tuple(pre_nms), tuple(post_nms), samples

    def anchors(self, features, padded) -> tuple:
        """The anchors of each level."""
        grids = self.grids(features)
        return box_math.anchors(tuple(box_math.rpn_sizes(len(grids))), grids, tuple(padded), FIRST_STRIDE, self.style)

    @staticmethod
    def grids(features) -> tuple:
        return tuple((int(f.shape[2]), int(f.shape[3])) for f in features)

    def execute(self, features):
        """Levels -> objectness logits (B, A) and steps (B, A, 4) of all levels' anchors."""
        return self.head(features)

    def proposals(self, objectness, steps, anchors, size, *, training: bool) -> tuple:
        """The boxes of one picture that may hold something: (boxes (N, 4), scores (N,), rows of all anchors (N,)).

        objectness (A,) and steps (A, 4) are numpy; size: the picture's (height, width) without padding.
        """
        style, part = self.style, 0 if training else 1
        chosen, levels, start = [], [], 0
        values = box_math.sigmoid(objectness) if style.rank_by_sigmoid else objectness
        for level, level_anchors in enumerate(anchors):
            end = start + len(level_anchors)
            best = box_math.best_first(values[start:end], self.pre_nms[part]) + start
            chosen.append(best)
            levels.append(np.full(len(best), level, np.int32))
            start = end
        chosen, levels = np.concatenate(chosen), np.concatenate(levels)
        boxes = box_math.decode(np.concatenate(anchors)[chosen], steps[chosen][:, None], UNIT, style)[:, 0]
        boxes = box_math.clip(boxes, size)
        scores = box_math.sigmoid(objectness[chosen])
        kept = np.flatnonzero(box_math.large_enough(boxes, style.smallest_proposal, style.exclusive))
        kept = kept[nms(boxes[kept], scores[kept], levels[kept], threshold=0.7)][:self.post_nms[part]]
        return boxes[kept], scores[kept], chosen[kept]

    def matches(self, anchors, grids, size, truth) -> tuple:
        """(rows of the trained anchors, their matches: the truth's row, -1 background, -2 neither)."""
        style = self.style
        trained = np.flatnonzero(box_math.trained_anchors(anchors, grids, size, FIRST_STRIDE, style))
        matches, _ = match_boxes(np.concatenate(anchors)[trained], truth.boxes, high=0.7, low=0.3,
                                 low_quality=style.low_quality, least=style.rpn_least)
        return trained, matches

    def losses(self, objectness, steps, anchors, grids, sizes, truths, sampler) -> dict:
        """{"rpn_objectness", "rpn_boxes"}: means over the drawn anchors."""
        count, together = objectness.shape[1], np.concatenate(anchors)
        first, second, wanted = [], [], []  # rows of the positives and of the negatives; steps of the positives
        for picture, (size, truth) in enumerate(zip(sizes, truths)):
            trained, matches = self.matches(anchors, grids, size, truth)
            positives, negatives = sampler.choose("rpn", picture, np.flatnonzero(matches >= 0),
                                                  np.flatnonzero(matches == -1), self.samples, 0.5)
            rows = trained[positives]
            first.append(picture * count + rows)
            second.append(picture * count + trained[negatives])
            wanted.append(box_math.encode(together[rows], truth.boxes[matches[positives]], UNIT))
        first, second, wanted = (np.concatenate(parts) for parts in (first, second, wanted))
        drawn = np.concatenate([first, second])
        number, target = shared_count(len(drawn)), (np.arange(len(drawn)) < len(first)).astype(np.float32)
        entropy = binary_cross_entropy(rows_of(objectness.reshape(-1), drawn), jt.array(target)) if len(drawn) else \
            objectness[:1] * 0.0
        away = smooth_l1(rows_of(steps.reshape(-1, 4), first) - jt.array(wanted), self.style.rpn_beta) if len(first) \
            else steps[:1, :1] * 0.0
        return {"rpn_objectness": total(entropy) / number, "rpn_boxes": total(away) / number}


def rows_of(x, rows):
    """x[rows], with gradient."""
    return x[jt.array(rows.astype(np.int32))]
