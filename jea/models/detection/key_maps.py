"""Names of detectors' weights in torchvision's and mmdetection's files. The models use torchvision's of today."""
from __future__ import annotations

from functools import partial

import numpy as np

from jea.checkpoint.keymap import KeyMap

ATTENTION = "backbone.body.attention."
HEAD = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.",
        "head.classification_head.cls_logits.")
_ALL_BUT_BODY = ("backbone.fpn.", "rpn.", "roi_heads.", "head.")


def _torchvision_v1(two_stage: bool) -> tuple:
    """(their prefix, ours) of torchvision's published files, written before its layers had numbers."""
    rules = [(f"backbone.fpn.{kind}_blocks.{k}.", f"backbone.fpn.{kind}_blocks.{k}.0.")
             for kind in ("inner", "layer") for k in range(4)]
    if two_stage:
        return (*rules, ("rpn.head.conv.", "rpn.head.conv.0.0."),
                *((f"roi_heads.mask_head.mask_fcn{k + 1}.", f"roi_heads.mask_head.{k}.0.") for k in range(4)))
    return (*rules, *((f"head.{head}_head.conv.{2 * k}.", f"head.{head}_head.conv.{k}.0.")
                      for head in ("classification", "regression") for k in range(4)))


def _mmdetection(two_stage: bool, levels: int) -> tuple:
    """(their prefix, ours) of mmdetection 2.x and 3.x."""
    rules = [(f"neck.lateral_convs.{k}.conv.", f"backbone.fpn.inner_blocks.{k}.0.") for k in range(levels)]
    rules += [(f"neck.fpn_convs.{k}.conv.", f"backbone.fpn.layer_blocks.{k}.0.") for k in range(levels)]
    if not two_stage:
        rules += [("neck.fpn_convs.3.conv.", "backbone.fpn.extra_blocks.p6."),
                  ("neck.fpn_convs.4.conv.", "backbone.fpn.extra_blocks.p7.")]
        rules += [(f"bbox_head.{short}_convs.{k}.conv.", f"head.{head}_head.conv.{k}.0.")
                  for short, head in (("cls", "classification"), ("reg", "regression")) for k in range(4)]
        rules += [("bbox_head.retina_cls.", "head.classification_head.cls_logits."),
                  ("bbox_head.retina_reg.", "head.regression_head.bbox_reg.")]
    else:
        rules += [("rpn_head.rpn_conv.", "rpn.head.conv.0.0."), ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
                  ("rpn_head.rpn_reg.", "rpn.head.bbox_pred.")]
        for stage in ("", "0.", "1.", "2."):
            box, mask = f"roi_head.bbox_head.{stage}", f"roi_head.mask_head.{stage}"
            rules += [(f"{box}shared_fcs.0.", f"roi_heads.box_head.{stage}fc6."),
                      (f"{box}shared_fcs.1.", f"roi_heads.box_head.{stage}fc7."),
                      (f"{box}fc_cls.", f"roi_heads.box_predictor.{stage}cls_score."),
                      (f"{box}fc_reg.", f"roi_heads.box_predictor.{stage}bbox_pred."),
                      *((f"{mask}convs.{k}.conv.", f"roi_heads.mask_head.{stage}{k}.0.") for k in range(4)),
                      (f"{mask}upsample.", f"roi_heads.mask_predictor.{stage}conv5_mask."),
                      (f"{mask}conv_logits.", f"roi_heads.mask_predictor.{stage}mask_fcn_logits.")]
    return (*rules, ("backbone.", "backbone.body."))


def in_order(tensors: dict, *, background_first: bool, from_mmdetection: bool) -> dict:
    """The heads on proposals with the background first, and outputs of boxes and masks for it too, as torchvision has
    them, or last and without, as mmdetection has them. Where no output is known, it becomes 0: nothing ever reads it.

    tensors: by our names. from_mmdetection: the names were mmdetection's; our own names stand in files of both orders,
    which the number of boxes' outputs tells apart.
    """
    changed = {}
    for key, scores in tensors.items():
        start, name, end = key.partition("cls_score.")
        if not name or not start.startswith("roi_heads."):
            continue
        boxes = tensors.get(f"{start}bbox_pred.{end}")
        if boxes is None or scores.ndim != boxes.ndim:
            continue
        if from_mmdetection or len(boxes) == 4 * (len(scores) - 1):
            stored_first = False
        elif len(boxes) == 4 * len(scores):
            stored_first = True
        else:
            continue  # boxes without classes, under our own names: as this model keeps them
        if stored_first == background_first:
            continue
        changed[key] = np.concatenate([scores[-1:], scores[:-1]] if background_first else [scores[1:], scores[:1]])
        others = {f"{start}bbox_pred.{end}": 4} if len(boxes) > 4 else {}
        mask = f"{start.replace('box_predictor', 'mask_predictor')}mask_fcn_logits.{end}"
        for other, rows in {**others, **({mask: 1} if mask in tensors else {})}.items():
            values = tensors[other]
            none = np.zeros((rows, *values.shape[1:]), values.dtype)
            changed[other] = np.concatenate([none, values]) if background_first else values[rows:]
    return {**tensors, **changed}


def key_maps_of(*, two_stage: bool, attention: bool, style) -> tuple:
    """The maps of a detector. Files of plain detectors leave its attention as it is initialised.

    The first map that holds the whole model is the one that .pth files are written in: that of the style.
    """
    levels = 4 if two_stage else 3
    ours, other = (partial(in_order, background_first=style.background_first, from_mmdetection=mmdet)
                   for mmdet in (False, True))
    torchvision = dict(name="torchvision's detectors", head=HEAD, convert=ours)
    v1 = dict(name="torchvision's published detectors (v1)", rules=_torchvision_v1(two_stage), head=HEAD, convert=ours)
    mmdetection = dict(name="mmdetection 2.x and 3.x", rules=_mmdetection(two_stage, levels), head=HEAD, convert=other)
    theirs = (dict(mmdetection, marker="neck."), dict(torchvision, marker="backbone.fpn.inner_blocks.0.0."),
              dict(v1, marker="backbone.fpn.inner_blocks.0.weight"))
    if style.background_first:
        theirs = (theirs[1], theirs[2], theirs[0])
    if attention:
        maps = [KeyMap(**kind, partial=(ATTENTION,)) for kind in theirs]
        full = ((torchvision, ATTENTION), (mmdetection, "backbone.attention."))
        maps += [KeyMap(**kind, marker=marker) for kind, marker in (full if style.background_first else full[::-1])]
    else:
        maps = [KeyMap(**kind) for kind in theirs]
    rest = _ALL_BUT_BODY + ((ATTENTION,) if attention else ())
    maps.append(KeyMap(name="ResNet of ImageNet (torchvision, timm)", marker="layer1.", drop=("fc.",), partial=rest,
                       rules=tuple((f"{name}.", f"backbone.body.{name}.")
                                   for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"))))
    return tuple(maps)


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell (names of any layout)."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    found: dict = {}
    mmdet = any(key.startswith("neck.") for key in shapes)
    if any(key.startswith(("neck.", "backbone.fpn.")) for key in shapes):
        found["style"] = "mmdet" if mmdet else "torchvision"
        attention = any(key.startswith((ATTENTION, "backbone.attention.")) for key in shapes)
        found["attention"] = "external" if attention else "none"
    if "backbone.fpn.inner_blocks.0.weight" in shapes:
        found["norm_eps"] = 0.0  # the published files were trained with norms that added nothing
    classes, boxes = (shapes.get(f"roi_heads.box_predictor.{name}.weight") for name in ("cls_score", "bbox_pred"))
    if classes and boxes and boxes[0] == 4 * (classes[0] - 1):  # boxes of the classes alone
        found["style"] = "mmdet"
    for key, outside, per_class in (("roi_heads.box_predictor.cls_score.weight", 1, 1),
                                    ("roi_heads.box_predictor.0.cls_score.weight", 1, 1),
                                    ("roi_head.bbox_head.fc_cls.weight", 1, 1),
                                    ("roi_head.bbox_head.0.fc_cls.weight", 1, 1),
                                    ("head.classification_head.cls_logits.weight", 1, 9),
                                    ("bbox_head.retina_cls.weight", 0, 9)):
        if key in shapes:
            found["num_classes"] = shapes[key][0] // per_class - outside
    return found
