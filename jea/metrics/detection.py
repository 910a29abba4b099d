"""COCO's average precision, by COCO's own tools."""
from __future__ import annotations

import contextlib
import io

import numpy as np

from jea.errors import SetupError

STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium",
         "AR_large")


def tools():
    """pycocotools' COCO and COCOeval; SetupError that names the extra where they are not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise SetupError(f"average precision is measured by pycocotools, which is not here ({error}); install it with "
                         "pip install 'jea[detection]'") from None
    return COCO, COCOeval


def coco_scores(truth: dict, results: list, kind: str) -> dict:
    """COCO's twelve numbers, and the AP of each class.

    Without any result they are 0 where there is something to find. -1 where there is nothing to find.

    Args:
        truth: {"images", "annotations", "categories"} as in a COCO-format file; annotation ids from 1.
        results: [{"image_id", "category_id", "bbox" or "segmentation", "score"}, ...].
        kind: "bbox" or "segm".
    Returns:
        {"AP": ..., the other names of STATS, "classes": {name: AP}, "eval": precision and recall arrays of
        pycocotools}.
    """
    COCO, COCOeval = tools()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables and times
        known = COCO()
        known.dataset = truth
        known.createIndex()
        if results:
            found = known.loadRes([dict(result) for result in results])
        else:
            found = COCO()
            found.dataset = dict(truth, annotations=[])
            found.createIndex()
        run = COCOeval(known, found, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]  # threshold, recall, class
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    classes = {}
    for place, id in enumerate(run.params.catIds):
        values = precision[:, :, place]
        classes[names[id]] = float(values[values > -1].mean()) if (values > -1).any() else float("nan")
    return {**dict(zip(STATS, map(float, run.stats))), "classes": classes, "eval": run.eval}


def mean_ap(scores: dict) -> float | None:
    """The AP that judges weights; None where there was nothing to find."""
    return None if scores["AP"] < 0 or np.isnan(scores["AP"]) else scores["AP"]
