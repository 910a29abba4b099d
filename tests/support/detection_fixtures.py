"""Detectors with the fixtures' weights, made once, and their stored arrays."""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "detection"
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]
import det_recipe  # noqa: E402
import recipe  # noqa: E402

NAMES = {"fasterrcnn": "ea_fasterrcnn_resnet50_fpn", "maskrcnn": "ea_maskrcnn_resnet50_fpn",
         "retinanet": "ea_retinanet_resnet50_fpn"}
FIXTURES = ("tv_fasterrcnn_r50_fpn", "tv_maskrcnn_r50_fpn", "tv_retinanet_r50_fpn", "ea_maskrcnn_r50_fpn",
            "mm_maskrcnn_r50_fpn", "mm_retinanet_r50_fpn")


def keywords(manifest) -> tuple:
    """The model's name and arguments, from the fixture's own words."""
    config = manifest["config"]
    mmdet = manifest["name"].startswith("mm_")
    found = {"num_classes": config["num_classes"] - (0 if mmdet else 1), "style": "mmdet" if mmdet else "torchvision",
             "attention": "external" if config["attention"] else "none",
             "norm_eps": config["bn_eps" if mmdet else "frozen_bn_eps"], "live_attention": False}
    two_stage = config["kind"] != "retinanet"
    if mmdet:
        given = config["override"]
        if two_stage:
            found.update(rpn_pre_nms=(given["model.train_cfg.rpn_proposal.nms_pre"],
                                      given["model.test_cfg.rpn.nms_pre"]),
                         rpn_post_nms=(given["model.train_cfg.rpn_proposal.max_per_img"],
                                       given["model.test_cfg.rpn.max_per_img"]),
                         detections_per_image=given["model.test_cfg.rcnn.max_per_img"])
        else:
            found["rpn_pre_nms"] = (1000, given["model.test_cfg.nms_pre"])
    else:
        given = config["args"]
        if two_stage:
            for kind in ("pre", "post"):
                found[f"rpn_{kind}_nms"] = tuple(given[f"rpn_{kind}_nms_top_n_{part}"] for part in ("train", "test"))
            if "box_detections_per_img" in given:
                found["detections_per_image"] = given["box_detections_per_img"]
        else:
            found.update(rpn_pre_nms=(1000, given["topk_candidates"]), detections_per_image=given["detections_per_img"])
    if two_stage:
        found.update(rpn_samples=20000, roi_samples=2000)
    return NAMES[config["kind"]], found


def load(name, folder):
    """The detector of a fixture, its weights through a genuine .pth file; arrays, inputs, probe(...)."""
    import jea
    from jea.models.detection.sampling import Truth
    manifest = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    model_name, arguments = keywords(manifest)
    model = jea.create_model(model_name, **arguments)
    path = folder / f"{name}.pth"
    mmdet = name.startswith("mm_")
    try:
        import write_pth_det
        write_pth_det.write(str(path), manifest, layout="mmdet2" if mmdet else "tv_v1")
    except ImportError:
        from jea.checkpoint.loading import write
        write(path, det_recipe.state(manifest), wrapper="state_dict" if mmdet else "")
    report = jea.load_weights(model, path)
    inputs = det_recipe.inputs(manifest)
    offset = 0 if mmdet else 1
    truths = [Truth(inputs[f"gt{k}/boxes"], inputs[f"gt{k}/labels"] - offset, inputs.get(f"gt{k}/masks"))
              for k in range(2)]

    def probe(what, array):
        stored, array = arrays[what], np.asarray(array)
        if stored.shape == array.shape:
            return array
        flat = array.reshape(-1)
        return flat[recipe.sample_indices(f"probe:{what}", flat.size, stored.size)]
    return SimpleNamespace(name=name, manifest=manifest, arrays=arrays, model=model, report=report, inputs=inputs,
                           truths=truths, probe=probe, offset=offset, mmdet=mmdet,
                           sizes=[tuple(s) for s in manifest["image_sizes"]],
                           originals=[tuple(s) for s in manifest["original_sizes"]],
                           two_stage=manifest["config"]["kind"] != "retinanet",
                           masks=manifest["config"]["kind"] == "maskrcnn")
