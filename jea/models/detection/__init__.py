"""Detectors: Faster, Mask, Cascade and Cascade Mask R-CNN and RetinaNet, with external attention in the backbone."""
from jea.models.detection.detectors import CascadeMaskRCNN, CascadeRCNN, Detector, FasterRCNN, MaskRCNN
from jea.models.detection.key_maps import infer_kwargs
from jea.models.detection.retinanet import RetinaNet

# Ours, for the demo and for tests: the same networks, small enough to train on two CPU cores.
TINY = {"layers": (1, 1, 1, 1), "width": 16, "channels": 48, "norm": "live", "frozen_stages": -1}

ENTRY_POINTS = {
    "ea_fasterrcnn_resnet50_fpn": (FasterRCNN, {"layers": (3, 4, 6, 3)}),
    "ea_fasterrcnn_resnet101_fpn": (FasterRCNN, {"layers": (3, 4, 23, 3)}),
    "ea_fasterrcnn_tiny": (FasterRCNN, {**TINY, "hidden": 128}),
    "ea_maskrcnn_resnet50_fpn": (MaskRCNN, {"layers": (3, 4, 6, 3)}),
    "ea_maskrcnn_resnet101_fpn": (MaskRCNN, {"layers": (3, 4, 23, 3)}),
    "ea_maskrcnn_tiny": (MaskRCNN, {**TINY, "hidden": 128}),
    "ea_cascade_rcnn_resnet50_fpn": (CascadeRCNN, {"layers": (3, 4, 6, 3)}),
    "ea_cascade_rcnn_resnet101_fpn": (CascadeRCNN, {"layers": (3, 4, 23, 3)}),
    "ea_cascade_rcnn_tiny": (CascadeRCNN, {**TINY, "hidden": 128}),
    "ea_cascade_maskrcnn_resnet50_fpn": (CascadeMaskRCNN, {"layers": (3, 4, 6, 3)}),
    "ea_cascade_maskrcnn_resnet101_fpn": (CascadeMaskRCNN, {"layers": (3, 4, 23, 3)}),
    "ea_cascade_maskrcnn_tiny": (CascadeMaskRCNN, {**TINY, "hidden": 128}),
    "ea_retinanet_resnet50_fpn": (RetinaNet, {"layers": (3, 4, 6, 3)}),
    "ea_retinanet_resnet101_fpn": (RetinaNet, {"layers": (3, 4, 23, 3)}),
    "ea_retinanet_tiny": (RetinaNet, TINY),
}

__all__ = ["CascadeMaskRCNN", "CascadeRCNN", "Detector", "ENTRY_POINTS", "FasterRCNN", "MaskRCNN", "RetinaNet",
           "infer_kwargs"]
