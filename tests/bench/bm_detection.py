"""Mask R-CNN R50-FPN on the CPU, jea against torchvision with the same weights, and their operators.

    python tests/bench/bm_detection.py                       # 800 x 1088: inference, a training step, peak memory
    python tests/bench/bm_detection.py --operators           # nms and roi_align on 1,000 to 20,000 boxes
    python tests/bench/bm_detection.py --height 320 --width 480 --runs 3 --json result.json

torchvision 0.29.1 needs torch 2.14.1, in a virtual environment of its own beside jea's packages. Boxes of both sides
are compared before anything is timed. The sides run in turn and medians are shown; peak memory is that of a process of
its own per side.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
from jea.commands.bench import interleaved, machine, table, threads  # noqa: E402

SIDES = ("jea", "torchvision")
BOXES = (1000, 5000, 20000)


def state(seed: int = 0) -> dict:
    """Weights under torchvision's names, such that some boxes are found."""
    import jea
    model = jea.create_model("ea_maskrcnn_resnet50_fpn", num_classes=90, attention="none")
    rng = np.random.default_rng(seed)
    made = {}
    for key, var in model.state_dict().items():
        shape = tuple(var.shape)
        if key.endswith("running_var"):
            made[key] = np.ones(shape, np.float32)
        elif len(shape) == 1:
            made[key] = np.full(shape, 1.0 if key.endswith("weight") else 0.0, np.float32)
        else:
            made[key] = (rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))).astype(np.float32)
    made["roi_heads.box_predictor.cls_score.weight"] *= 3
    made["rpn.head.bbox_pred.weight"] *= 0.1
    return made


def truths(height: int, width: int, count: int = 8) -> tuple:
    rng = np.random.default_rng(1)
    corner = rng.random((count, 2)) * [width * 0.6, height * 0.6]
    boxes = np.concatenate([corner, corner + 40 + rng.random((count, 2)) * [width * 0.3, height * 0.3]], 1)
    boxes = boxes.astype(np.float32)
    masks = np.zeros((count, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    return boxes, rng.integers(0, 90, count), masks


def jea_sides(height: int, width: int) -> dict:
    import jea
    from jea._jittor import jt
    from jea.models.detection.sampling import Truth
    from jea.nn.mode import evaluating
    model = jea.create_model("ea_maskrcnn_resnet50_fpn", num_classes=90, attention="none")
    for key, value in state().items():
        model.state_dict()[key].update(jt.array(value))
    x = jt.array(np.random.default_rng(2).standard_normal((1, 3, height, width)).astype(np.float32))
    optimizer = jt.optim.SGD([p for p in model.parameters() if not p.is_stop_grad()], lr=1e-6, momentum=0.9)
    truth = Truth(*truths(height, width))

    def infer():
        with evaluating(model):
            return model(x)[0]

    def train():
        loss = model.losses(x, [(height, width)], [truth])["loss"]
        optimizer.step(loss)
        jt.sync_all(True)
        return loss.item()
    return {"inference": infer, "training": train}


def torchvision_sides(height: int, width: int) -> dict:
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d,
                                   trainable_layers=3)
    model = MaskRCNN(backbone, 91)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state().items()})
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 3, height, width)).astype(np.float32))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    boxes, labels, masks = truths(height, width)
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels + 1).long(),
              "masks": torch.from_numpy(masks)}

    def parts(targets=None):
        features = model.backbone(x)
        images = ImageList(x, [(height, width)])
        proposals, first = model.rpn(images, features, targets)
        found, second = model.roi_heads(features, proposals, images.image_sizes, targets)
        return found, {**first, **second}

    def infer():
        model.eval()
        with torch.inference_mode():
            found, _ = parts()
            found = model.transform.postprocess(found, [(height, width)], [(height, width)])[0]
        return {"boxes": found["boxes"].numpy(), "scores": found["scores"].numpy(),
                "masks": found["masks"].numpy()[:, 0] > 0.5}

    def train():
        model.train()
        loss = sum(parts([target])[1].values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return {"inference": infer, "training": train}


def whole(arguments) -> dict:
    """Inference and training of both sides in turn, and each one's peak memory."""
    sides = {"jea": jea_sides, "torchvision": torchvision_sides}
    made = {name: sides[name](arguments.height, arguments.width) for name in SIDES}
    ours, theirs = (made[name]["inference"]() for name in SIDES)
    if len(ours["boxes"]) != len(theirs["boxes"]) or np.abs(ours["boxes"] - theirs["boxes"]).max() > 0.05:
        raise SystemExit(f"the sides disagree: {len(ours['boxes'])} and {len(theirs['boxes'])} boxes")
    rows = {}
    for kind in ("inference", "training"):
        functions = {name: made[name][kind] for name in SIDES}
        for function in functions.values():
            function()
        for name, found in interleaved(functions, arguments.runs).items():
            rows[f"{kind} {name}"] = {"seconds": found["median"], "best": found["best"]}
            peak = subprocess.run([sys.executable, __file__, "--peak", name, kind, "--height", str(arguments.height),
                                   "--width", str(arguments.width)], capture_output=True, text=True)
            rows[f"{kind} {name}"]["peak MB"] = float(peak.stdout.split()[-1]) if peak.returncode == 0 else None
    return rows


def operators(arguments) -> dict:
    """nms and roi_align of both, in milliseconds."""
    import torch
    import torchvision

    from jea._jittor import jt
    from jea.ops.detection import nms, roi_align
    rng, rows = np.random.default_rng(0), {}
    features = rng.standard_normal((1, 256, 200, 272)).astype(np.float32)
    ours, theirs = jt.array(features), torch.from_numpy(features)
    for count in BOXES:
        corner = rng.random((count, 2)) * [1000, 720]
        boxes = np.concatenate([corner, corner + 8 + rng.random((count, 2)) * 80], 1).astype(np.float32)
        scores = rng.random(count).astype(np.float32)
        pairs = {"nms": (lambda: nms(boxes, scores, threshold=0.7),
                         lambda: torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.7).numpy())}
        rois = np.concatenate([np.zeros((count, 1), np.float32), boxes], 1)[:5000]
        pairs["roi_align"] = (
            lambda: roi_align([ours], rois, size=(7, 7), scales=[0.25], sampling=2).numpy(),
            lambda: torchvision.ops.roi_align(theirs, torch.from_numpy(rois), (7, 7), 0.25, 2, False).numpy())
        for name, (mine, other) in pairs.items():
            a, b = mine(), other()
            if a.shape != b.shape or np.abs(a - b).max() > 1e-4:
                raise SystemExit(f"{name} of {count} boxes: the sides disagree")
            found = interleaved({"jea": mine, "torchvision": other}, arguments.runs)
            rows[f"{name} {count if name == 'nms' else len(rois)}"] = {
                side: 1000 * found[side]["median"] for side in SIDES}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--operators", action="store_true", help="only nms and roi_align")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "KIND"), help="print the peak memory of one side, in MB")
    arguments = parser.parse_args()
    if arguments.peak:
        import resource
        side, kind = arguments.peak
        run = {"jea": jea_sides, "torchvision": torchvision_sides}[side](arguments.height, arguments.width)[kind]
        for _ in range(2):
            run()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"torchvision is not here ({error}); it needs torch 2.14.1 in an environment of its "
                         "own") from None
    rows = operators(arguments) if arguments.operators else whole(arguments)
    print(json.dumps(machine()), f"{threads()} threads")
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
