"""What torchvision's and mmdetection's detectors do differently: one table, that the one code path reads.

The weights of the two are made for their own constants: a box of one, run with the other's anchors, clamps or RoIAlign,
is another box.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from jea.errors import ConfigError, nearest, quoted

LARGEST_STEP = 4.135166556742356  # log(1000 / 16): decoded boxes grow by at most this factor


@dataclass(frozen=True)
class Style:
    """Constants and rules of one code base.

    background_first: output 0 of the classifiers is the background, else the last one. Outputs per class (boxes, masks,
        RetinaNet's logits) exist for the background too where it is first, and for the classes alone where it is last.
    frozen_affine: the weights and biases of frozen norms stay as they are, else those of unfrozen stages are trained.
    rounded_anchors: anchors have whole corners. fixed_strides: anchors lie 4, 8, ... pixels apart, else padded size //
        grid size on each axis.
    clamp_both: decoded sides shrink by at most LARGEST_STEP too.
    own_cells: anchors of grid cells beyond the picture's own size, rounded up to 32, are not trained.
    border: anchors that reach further than this beyond the picture are not trained; None: all are.
    rank_by_sigmoid: of the RPN's boxes; else by logits.
    smallest_proposal, smallest_box: sides; below them, boxes are dropped. exclusive: at them too.
    aligned, sampling: of RoIAlign. level_top: levels by floor(4 + log2(s / 224) + 1e-6), else floor(log2(s / 56 +
    1e-6)). rpn_beta, box_beta: of the smooth L1 losses; 0: L1.
    low_quality: how RPN and RetinaNet match truths that no anchor fits; rpn_least, retina_least: see match_boxes.
    mask_low_quality: networks with masks match proposals like that too.
    truths_first: the ground truth stands before the proposals and is its own match, else after them, and is matched.
    suppress_original: the last NMS sees boxes of the original picture, unless there are masks.
    paste: rule of paste_masks. binary_targets: mask targets are 0 or 1.
    retina_relu: P7 = conv(relu(P6)). retina_from_c5: P6 = conv(C5), else conv(P5).
    retina_per_picture: RetinaNet's losses are means over pictures, else sums over all positives.
    retina_detections: boxes of a picture; two_stage_detections: those of the others.
    rpn_post_nms: proposals of a picture after NMS, in training and in testing.
    """

    name: str
    background_first: bool
    frozen_affine: bool
    rounded_anchors: bool
    fixed_strides: bool
    clamp_both: bool
    own_cells: bool
    border: Optional[float]
    rank_by_sigmoid: bool
    smallest_proposal: float
    smallest_box: Optional[float]
    exclusive: bool
    aligned: bool
    sampling: int
    level_top: bool
    rpn_beta: float
    box_beta: float
    low_quality: str
    rpn_least: float
    retina_least: float
    mask_low_quality: bool
    truths_first: bool
    suppress_original: bool
    paste: str
    binary_targets: bool
    retina_relu: bool
    retina_from_c5: bool
    retina_per_picture: bool
    retina_detections: int
    rpn_post_nms: tuple
    two_stage_detections: int = 100

    @property
    def offset(self) -> int:
        """The output of foreground class 0."""
        return 1 if self.background_first else 0

    def cascade(self) -> Style:
        """The constants of Cascade R-CNN in this style: mmdetection's differ from those of its Faster R-CNN."""
        if self.background_first:
            return replace(self, box_beta=1.0)
        return replace(self, border=0.0, rpn_beta=1 / 9, box_beta=1.0, mask_low_quality=False,
                       rpn_post_nms=(2000, 1000))


STYLES = {
    "torchvision": Style(
        name="torchvision", background_first=True, frozen_affine=True, rounded_anchors=True, fixed_strides=False,
        clamp_both=False, own_cells=False, border=None, rank_by_sigmoid=False, smallest_proposal=1e-3,
        smallest_box=1e-2, exclusive=False, aligned=False, sampling=2, level_top=True, rpn_beta=1 / 9, box_beta=1 / 9,
        low_quality="restore", rpn_least=0.0, retina_least=0.0, mask_low_quality=False, truths_first=False,
        suppress_original=False, paste="expand", binary_targets=False, retina_relu=True, retina_from_c5=False,
        retina_per_picture=True, retina_detections=300, rpn_post_nms=(2000, 1000)),
    "mmdet": Style(
        name="mmdet", background_first=False, frozen_affine=False, rounded_anchors=False, fixed_strides=True,
        clamp_both=True, own_cells=True, border=None, rank_by_sigmoid=True, smallest_proposal=0.0, smallest_box=None,
        exclusive=True, aligned=True, sampling=0, level_top=False, rpn_beta=0.0, box_beta=0.0, low_quality="overwrite",
        rpn_least=0.3, retina_least=0.0, mask_low_quality=True, truths_first=True, suppress_original=True,
        paste="grid", binary_targets=True, retina_relu=False, retina_from_c5=True, retina_per_picture=False,
        retina_detections=100, rpn_post_nms=(1000, 1000)),
}


def style_of(name: str, *, cascade: bool = False) -> Style:
    """The style of a name; ConfigError with the nearest one for a name that is none."""
    if name not in STYLES:
        raise ConfigError(f"style is {quoted(name)}; expected {' or '.join(STYLES)}{nearest(name, STYLES)}")
    return STYLES[name].cascade() if cascade else STYLES[name]
