"""Detectors with external attention in their backbone, in the styles of torchvision and mmdetection.

Faster R-CNN (arXiv 1506.01497) with a feature pyramid (1612.03144), Mask R-CNN (1703.06870), Cascade R-CNN
(1712.00726), RetinaNet (1708.02002). The paper's later version adds external attention "at the end of ResNet stage 4"
to mmdetection's. Its code was never published: that this is the segmentation block after layer4, that its normalisation
trains with the batch's statistics, and that it may start as the identity, are choices of ours.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from jea._jittor import jt
from jea.errors import ConfigError, quoted
from jea.models.detection import boxes as box_math
from jea.models.detection.backbone import Backbone
from jea.models.detection.key_maps import key_maps_of
from jea.models.detection.roi_heads import RoIHeads
from jea.models.detection.rpn import RPN
from jea.models.detection.sampling import Sampler, Truth
from jea.models.detection.styles import style_of
from jea.models.network import Network
from jea.nn.blocks import checked_pictures
from jea.ops.detection import paste_masks


class Detector(Network):
    """What all detectors share: sizes, rescaling and what comes out.

    Evaluation: detector(images, sizes, original_sizes) -> a list with a dict of numpy arrays for each picture, by
    falling
    score: boxes (N, 4) x1 y1 x2 y2 in the original picture's pixels, scores (N,), labels (N,) from 0 over the
    foreground classes, and masks (N, h, w) bool where the detector makes masks.

    images: float (B, 3, H, W), a Var or an array, resized, normalised and padded with 0 at the right and the bottom;
    sizes: [(height, width), ...] of the pictures without the padding, default (H, W); original_sizes: before the
    resize, default sizes.

    Training: detector.losses(images, sizes, truths) -> {"loss": their sum, names: scalars}.
    """

    solves = "detection"
    masks = False

    def execute(self, images, sizes=None, original_sizes=None):
        if self.is_training():
            raise ConfigError(f"{type(self).__name__}: call losses(images, sizes, truths) in training, or eval() first")
        images, sizes = self.checked(images, sizes)
        originals = [tuple(map(int, size)) for size in (sizes if original_sizes is None else original_sizes)]
        with jt.no_grad():
            return self.detect(images, sizes, originals)

    def checked(self, images, sizes) -> tuple:
        if isinstance(images, np.ndarray):
            images = jt.array(np.ascontiguousarray(images, np.float32))
        images = checked_pictures(images, type(self).__name__)
        b, _, height, width = images.shape
        sizes = [(height, width)] * b if sizes is None else [tuple(map(int, size)) for size in sizes]
        if len(sizes) != b or any(not (0 < h <= height and 0 < w <= width) for h, w in sizes):
            raise ConfigError(f"{type(self).__name__}: sizes are {quoted(sizes)}; expected {b} of (height, width) "
                              f"within {height} x {width}")
        return images, sizes

    def losses(self, images, sizes, truths, *, seeds=None, sampler=None) -> dict:
        """Scalars to minimise: "loss", the sum, and its parts.

        truths: a list of Truth. seeds: an integer for each picture, for the drawing of anchors and proposals, default
        0, 1, ...; or a sampler of one's own.
        """
        images, sizes = self.checked(images, sizes)
        sampler = sampler or Sampler(range(len(sizes)) if seeds is None else seeds)
        found = self.parts(images, sizes, truths, sampler)
        return {"loss": sum(found.values()), **{f"{name}_loss": value for name, value in found.items()}}

    def detect(self, images, sizes, originals) -> list:
        raise NotImplementedError

    def parts(self, images, sizes, truths, sampler) -> dict:
        raise NotImplementedError

    @staticmethod
    def rescaled(boxes, size, original, style) -> np.ndarray:
        """Boxes in the original picture's pixels."""
        f = np.float32
        if style.background_first:  # torchvision multiplies, mmdetection divides
            down, along = (f(o) / f(s) for o, s in zip(original, size))
            return boxes * np.array([along, down, along, down], f)
        down, along = (f(s / o) for o, s in zip(original, size))
        return boxes / np.array([along, down, along, down], f)


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; expected at least 1 (without background)")


def _pair(name: str, values) -> tuple:
    values = tuple(values)
    if len(values) != 2 or any(isinstance(v, bool) or int(v) != v or v < 1 for v in values):
        raise ConfigError(f"{name} is {quoted(list(values))}; expected two positive integers: for training and for "
                          "testing")
    return tuple(int(v) for v in values)


class FasterRCNN(Detector):
    """Boxes in two stages.

    Args:
        num_classes: without background: torchvision's 91 are 90 here.
        style: "torchvision" or "mmdet": see jea.models.detection.styles.
        attention: "external" or "none": the plain detector. attention_stage: 1 to 4, of the ResNet.
        live_attention: the attention's normalisation uses the batch's statistics in training; else its stored ones.
        zero_attention: the attention starts as the identity.
        norm: "frozen" statistics in the ResNet, or "live" ones. norm_eps: added to their variances; 0.0 for
        torchvision's
            published files.
        frozen_stages: the stem and so many stages of the ResNet do not train; 0: the stem; -1: all of it trains.
        rpn_pre_nms, rpn_post_nms: proposals of a level before, and of a picture after NMS: (training, testing).
        Default:
            the style's.
        rpn_samples, roi_samples: anchors and proposals of a picture that train.
        detections_per_image: at most; default: the style's.
        layers, width: of the ResNet. channels: of the pyramid. hidden: of the box head.
    """

    cascade = False

    def __init__(self, *, num_classes: int = 80, style: str = "torchvision", attention: str = "external",
                 attention_stage: int = 4, live_attention: bool = True, zero_attention: bool = False,
                 norm: str = "frozen", norm_eps: float = 1e-5, frozen_stages: int = 1,
                 rpn_pre_nms: Sequence[int] = (2000, 1000), rpn_post_nms: Optional[Sequence[int]] = None,
                 rpn_samples: int = 256, roi_samples: int = 512,
                 detections_per_image: Optional[int] = None, layers: Sequence[int] = (3, 4, 6, 3), width: int = 64,
                 channels: int = 256, hidden: int = 1024):
        _check_classes(num_classes)
        self.num_classes, self.style = num_classes, style_of(style, cascade=self.cascade)
        self.backbone = Backbone(layers, width, channels, style=self.style, retina=False, norm=norm, norm_eps=norm_eps,
                                 frozen_stages=frozen_stages, attention=attention, attention_stage=attention_stage,
                                 live_attention=live_attention, zero_attention=zero_attention)
        post_nms = self.style.rpn_post_nms if rpn_post_nms is None else rpn_post_nms
        self.rpn = RPN(channels, style=self.style, pre_nms=_pair("rpn_pre_nms", rpn_pre_nms),
                       post_nms=_pair("rpn_post_nms", post_nms), samples=rpn_samples)
        self.roi_heads = RoIHeads(channels, hidden, num_classes, style=self.style, cascade=self.cascade,
                                  masks=self.masks, samples=roi_samples,
                                  detections=detections_per_image or self.style.two_stage_detections)
        self.key_maps = key_maps_of(two_stage=True, attention=attention == "external", style=self.style)

    def proposals(self, images, sizes, features, *, training: bool) -> tuple:
        """(each picture's proposals, and what the RPN's losses take)."""
        objectness, steps = self.rpn(features)
        anchors = self.rpn.anchors(features, images.shape[2:])
        values, moves = objectness.numpy(), steps.numpy()
        found = [self.rpn.proposals(values[k], moves[k], anchors, size, training=training)[0]
                 for k, size in enumerate(sizes)]
        return found, (objectness, steps, anchors, self.rpn.grids(features))

    def detect(self, images, sizes, originals) -> list:
        features = self.backbone(images)
        proposals, _ = self.proposals(images, sizes, features, training=False)
        heads, found = self.roi_heads, []
        for one, size, original in zip(heads.run(features, proposals, sizes), sizes, originals):
            found.append(heads.detect(*one, size, (size[1] / original[1], size[0] / original[0])))
        results = [{"boxes": self.rescaled(boxes, size, original, self.style), "scores": scores, "labels": labels}
                   for (boxes, scores, labels, _), size, original in zip(found, sizes, originals)]
        if self.masks:
            probabilities = heads.mask_probabilities(features, [f[0] for f in found], [f[2] for f in found])
            for result, masks, original in zip(results, probabilities, originals):
                result["masks"] = paste_masks(masks, result["boxes"], original, rule=self.style.paste)
        return results

    def parts(self, images, sizes, truths, sampler) -> dict:
        features = self.backbone(images)
        proposals, dense = self.proposals(images, sizes, features, training=True)
        found = self.rpn.losses(*dense, sizes, truths, sampler)
        return {**found, **self.roi_heads.losses(features, proposals, sizes, truths, sampler)}


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with masks. Arguments as there."""
    masks = True


class CascadeRCNN(FasterRCNN):
    """Faster R-CNN with three stages of boxes, each for a higher IoU. Arguments as there."""
    cascade = True


class CascadeMaskRCNN(FasterRCNN):
    """Cascade R-CNN with masks in each stage. Arguments as in Faster R-CNN."""
    cascade = masks = True


def truths_of(pictures) -> list:
    """Truth objects of dicts with boxes, labels and perhaps masks."""
    return [Truth(p["boxes"], p["labels"], p.get("masks")) for p in pictures]


__all__ = ["CascadeMaskRCNN", "CascadeRCNN", "Detector", "FasterRCNN", "MaskRCNN", "box_math", "truths_of"]
