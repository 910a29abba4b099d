"""Operators of detectors."""
from jea.ops.detection.match_boxes import iou_matrix, match_boxes
from jea.ops.detection.nms import nms
from jea.ops.detection.paste_masks import paste_masks
from jea.ops.detection.roi_align import roi_align
from jea.ops.detection.sigmoid_focal_loss import sigmoid_focal_loss

__all__ = ["iou_matrix", "match_boxes", "nms", "paste_masks", "roi_align", "sigmoid_focal_loss"]
