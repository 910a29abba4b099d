"""Mask R-CNN R50-FPN on the CPU, jea against torchvision with the same weights, and their operators.

    python tests/bench/bm_detection.py                       # 800 x 1088: inference, a training step, peak memory
    python tests/bench/bm_detection.py --operators           # nms and roi_align on 1,000 to 20,000 boxes
    python tests/bench/bm_detection.py --height 320 --width 480 --runs 3 --json result.json

torchvision 0.29.1 needs torch 2.14.1, in a virtual environment of its own beside jea's packages. Boxes, masks and
losses of the sides are compared before anything is timed. The sides run in turn and medians are shown. Peak memory is
that of a process of its own per side: in all, and above what its imports take.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

SIDES = ("jea", "torchvision", "torchvision, channels_last")
KINDS = ("inference", "training")
BOXES = (1000, 5000, 20000)


def write_state(path, seed: int = 0) -> None:
    """A file of weights under torchvision's names, such that some boxes are found."""
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
    np.savez(path, **made)


def truths(height: int, width: int, count: int = 8) -> tuple:
    rng = np.random.default_rng(1)
    corner = rng.random((count, 2)) * [width * 0.6, height * 0.6]
    boxes = np.concatenate([corner, corner + 40 + rng.random((count, 2)) * [width * 0.3, height * 0.3]], 1)
    boxes = boxes.astype(np.float32)
    masks = np.zeros((count, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    return boxes, rng.integers(0, 90, count), masks


def jea_sides(height: int, width: int, weights, kinds=KINDS) -> dict:
    import jea
    from jea._jittor import jt
    from jea.data import Batch
    from jea.models.detection.sampling import Truth
    from jea.tasks.options.training import TrainOptions
    from jea.training.phase import Phase, run_step
    model = jea.create_model("ea_maskrcnn_resnet50_fpn", num_classes=90, attention="none")
    jea.load_weights(model, weights)
    picture = np.random.default_rng(2).standard_normal((1, 3, height, width)).astype(np.float32)
    found = {}
    if "inference" in kinds:
        fused = jea.fuse(model)
        found["inference"] = lambda: fused(jt.array(picture))[0]
    if "training" in kinds:
        truth, batch = Truth(*truths(height, width)), Batch({"image": picture})
        phase = Phase(name="detection", optimizer=jt.optim.SGD(
            [p for p in model.parameters() if not p.is_stop_grad()], lr=1e-6, momentum=0.9),
            losses=lambda batch: model.losses(jt.array(batch["image"]), [(height, width)], [truth]))
        found["training"] = lambda: run_step([phase], batch, 0, TrainOptions())["loss"]
    return found


def torchvision_sides(height: int, width: int, weights, kinds=KINDS, *, channels_last: bool = False) -> dict:
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d,
                                   trainable_layers=3)
    model = MaskRCNN(backbone, 91)
    with np.load(weights) as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 3, height, width)).astype(np.float32))
    if channels_last:
        model, x = (thing.to(memory_format=torch.channels_last) for thing in (model, x))
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


def side(name: str, *arguments) -> dict:
    if name == "jea":
        return jea_sides(*arguments)
    return torchvision_sides(*arguments, channels_last=name.endswith("channels_last"))


def compare(made: dict) -> None:
    """Stop if the sides do not find the same."""
    ours, theirs = (made[name]["inference"]() for name in SIDES[:2])
    if len(ours["boxes"]) != len(theirs["boxes"]) or np.abs(ours["boxes"] - theirs["boxes"]).max() > 0.05:
        raise SystemExit(f"the sides disagree: {len(ours['boxes'])} and {len(theirs['boxes'])} boxes")
    share = (ours["masks"] != theirs["masks"]).mean()
    if share > 1e-3:
        raise SystemExit(f"the sides disagree on {100 * share:.2f} % of the masks' pixels")
    losses = [made[name]["training"]() for name in SIDES[:2]]
    if abs(losses[0] - losses[1]) > 0.05 * abs(losses[1]):  # each draws its own anchors and proposals
        raise SystemExit(f"the sides disagree: losses of {losses[0]:.3f} and {losses[1]:.3f}")
    print(f"{len(ours['boxes'])} boxes on both sides; losses {losses[0]:.4f} and {losses[1]:.4f}")


def whole(arguments) -> dict:
    """Inference and training of the sides in turn, and each one's peak memory."""
    from jea.commands.bench import interleaved
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.npz")
        write_state(weights)
        made = {name: side(name, arguments.height, arguments.width, weights) for name in SIDES}
        compare(made)
        rows = {}
        for kind in KINDS:
            functions = {name: made[name][kind] for name in SIDES}
            for function in functions.values():
                function()
            for name, found in interleaved(functions, arguments.runs).items():
                rows[f"{kind}, {name}"] = {"seconds": found["median"], "best": found["best"]}
        made = functions = None
        for kind in KINDS:
            for name in SIDES:
                rows[f"{kind}, {name}"].update(peak_of(name, kind, arguments, weights))
    return rows


def peak_of(name: str, kind: str, arguments, weights: str) -> dict:
    run = subprocess.run([sys.executable, __file__, "--peak", name, kind, weights, "--height", str(arguments.height),
                          "--width", str(arguments.width)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"the process for the peak memory of {name}: {run.stderr[-500:]}")
    imports, peak = map(float, run.stdout.split()[-2:])
    return {"peak MB": peak, "above imports MB": peak - imports}


def print_peak(name: str, kind: str, weights: str, height: int, width: int) -> None:
    if name == "jea":
        import jea._jittor  # noqa: F401
    else:
        import torchvision.models.detection  # noqa: F401
    imports = peak_memory_mb()
    run = side(name, height, width, weights, (kind,))[kind]
    for _ in range(2):
        run()
    print(imports, peak_memory_mb())


def peak_memory_mb() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) >> 10


def operators(arguments) -> dict:
    """nms and roi_align of both, in milliseconds."""
    import torch
    import torchvision

    from jea._jittor import jt
    from jea.commands.bench import interleaved
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
        rois = np.concatenate([np.zeros((count, 1), np.float32), boxes], 1)
        pairs["roi_align"] = (
            lambda: roi_align([ours], rois, size=(7, 7), scales=[0.25], sampling=2).numpy(),
            lambda: torchvision.ops.roi_align(theirs, torch.from_numpy(rois), (7, 7), 0.25, 2, False).numpy())
        for name, (mine, other) in pairs.items():
            a, b = mine(), other()
            if a.shape != b.shape or np.abs(a - b).max() > 1e-4:
                raise SystemExit(f"{name} of {count} boxes: the sides disagree")
            del a, b
            found = interleaved({"jea": mine, "torchvision": other}, arguments.runs)
            rows[f"{name}, {count} boxes"] = {f"{side} ms": 1000 * found[side]["median"] for side in SIDES[:2]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--operators", action="store_true", help="only nms and roi_align")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--peak", nargs=3, metavar=("SIDE", "KIND", "WEIGHTS"),
                        help="print the memory of a side's imports and its peak, in MB")
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(*arguments.peak, arguments.height, arguments.width)
        return
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"torchvision is not here ({error}); it needs torch 2.14.1 in an environment of its "
                         "own") from None
    from jea.commands.bench import machine, table, threads
    rows = operators(arguments) if arguments.operators else whole(arguments)
    print(json.dumps(machine()), f"{threads()} threads")
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
