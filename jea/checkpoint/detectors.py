"""Which detector a checkpoint holds, told by its names and shapes."""
from __future__ import annotations


def detector_of(shapes: dict) -> str:
    """Such as "Mask R-CNN, 90 classes, ResNet-50, names of torchvision's published files"; "" for what is no detector.

    shapes: {name: shape}, the names perhaps behind a prefix.
    """
    def find(*ends: str):
        return next((shape for end in ends for key, shape in shapes.items() if key.endswith(end)), None)
    mmdetection = find("neck.lateral_convs.0.conv.weight") is not None
    old = find("backbone.fpn.inner_blocks.0.weight") is not None
    if not (mmdetection or old or find("backbone.fpn.inner_blocks.0.0.weight") is not None):
        return ""
    retina = find("bbox_head.retina_cls.weight", "head.classification_head.cls_logits.weight")
    cascade = find("bbox_head.2.fc_cls.weight", "box_predictor.2.cls_score.weight")
    scores = find("bbox_head.fc_cls.weight", "box_predictor.cls_score.weight") or cascade
    masks = find("conv_logits.weight", "mask_fcn_logits.weight") is not None
    if retina:
        name, classes = "RetinaNet", retina[0] // 9 - (0 if mmdetection else 1)
    elif scores:
        kind = "Cascade Mask R-CNN" if cascade and masks else \
            "Cascade R-CNN" if cascade else "Mask R-CNN" if masks else \
            "Faster R-CNN"
        name, classes = kind, scores[0] - 1
    else:
        return ""
    blocks = {key.partition("layer3.")[2].partition(".")[0] for key in shapes if "layer3." in key}
    depth = {6: ", ResNet-50", 23: ", ResNet-101"}.get(len(blocks), "")
    attention = ", external attention" if find("attention.linear_0.weight") else ""
    names = "mmdetection" if mmdetection else "torchvision's published files (v1)" if old else "torchvision"
    return f"{name}, {classes} classes, {depth[2:]}{attention}, names of {names}" if depth else \
        f"{name}, {classes} classes{attention}, names of {names}"
