"""Speed on a GPU: double_norm's bandwidth, and EANet-R50 (output stride 8) against PyTorch eager and torch.compile.

    python tests/gpu/bench.py --json result.json [--device cuda] [--size 513] [--runs 20]

Each side is a process of its own, in float32 and with TF32; medians. A side's logits are compared with jea's float32
before its time counts: beyond 1e-4 (TF32: 2e-2) of the largest there is no number. PyTorch may be missing.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
SIDES = ("jea", "jea fused", "torch eager", "torch compile")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True, help="file for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--tf32", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return one_side(arguments)
    results = {"double_norm": None, "eanet_resnet50": {}}
    with tempfile.TemporaryDirectory() as folder:
        results["double_norm"] = child(arguments, folder, "double_norm", False)
        for tf32 in (False, True) if arguments.device == "cuda" else (False,):
            for side in SIDES:
                if side.startswith("torch") and importlib.util.find_spec("torch") is None:
                    continue
                label = f"{side}, TF32" if tf32 else side
                results["eanet_resnet50"][label] = child(arguments, folder, side, tf32)
                Path(arguments.json).write_text(json.dumps(results, indent=1))  # what there is, should the time end
    print(json.dumps(results, indent=1))
    failed = [side for side, result in results["eanet_resnet50"].items() if "error" in result]
    return 1 if failed or "error" in results["double_norm"] else 0


def child(arguments, folder: str, side: str, tf32: bool) -> dict:
    command = [sys.executable, __file__, "--json", arguments.json, "--device", arguments.device, "--size",
               str(arguments.size), "--runs", str(arguments.runs), "--side", side, "--folder", folder]
    environment = dict(os.environ, NVIDIA_TF32_OVERRIDE="0")
    if tf32:
        command.append("--tf32")
        del environment["NVIDIA_TF32_OVERRIDE"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip() or f"status {done.returncode}")[-600:]}


def one_side(arguments) -> int:
    cuda = arguments.device == "cuda"
    if arguments.side.startswith("torch"):
        result = torch_side(arguments, cuda)
    else:
        from jea import environment
        environment.choose_device(arguments.device)
        if arguments.tf32:
            environment.allow_tf32()
        from jea._jittor import jt
        jt.flags.use_cuda = int(cuda)
        result = double_norm_bandwidth(cuda) if arguments.side == "double_norm" else jea_side(arguments)
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


def median_time(function, synchronise, runs: int) -> float:
    for _ in range(3):
        function()
    synchronise()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        synchronise()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def jea_side(arguments) -> dict:
    import bm_eanet

    import jea
    from jea._jittor import jt
    model = bm_eanet.jea_eanet()
    x, small = bm_eanet.picture(1, arguments.size), bm_eanet.picture(2, arguments.size // 2 | 1)
    weights = Path(arguments.folder, "weights.npz")
    if not weights.exists():
        bm_eanet.randomise_statistics(model)
        jea.save_weights(model, str(weights))
    jea.load_weights(model, str(weights))
    model.eval()
    inference = jea.fuse(model) if arguments.side.endswith("fused") else model
    picture = jt.array(x)

    def infer():
        with jt.no_grad():
            inference(picture).sync()
    with jt.no_grad():
        logits = inference(picture).numpy()
    result = checked(arguments, logits)
    synchronise = (lambda: jt.sync_all(True))
    result["inference_s"] = median_time(infer, synchronise, arguments.runs)
    if not arguments.side.endswith("fused"):
        step = bm_eanet.training_side("jea", small, bm_eanet.labels_like(small), model)
        result["training_s"] = median_time(step, synchronise, max(arguments.runs // 2, 3))
    return result


def torch_side(arguments, cuda: bool) -> dict:
    import bm_eanet
    import torch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.tf32
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)
    network = bm_eanet.torch_eanet()
    with np.load(Path(arguments.folder, "weights.npz")) as stored:
        names = set(network.state_dict())
        network.load_state_dict({k: torch.from_numpy(stored[k]) for k in stored.files if k in names}, strict=False)
    network = network.to(device).to(memory_format=torch.channels_last)
    x, small = bm_eanet.picture(1, arguments.size), bm_eanet.picture(2, arguments.size // 2 | 1)
    picture = torch.from_numpy(x).to(device).to(memory_format=torch.channels_last)
    # the two sizes are compiled apart: what inductor makes for any size is slower, and on the CPU it fails
    run = torch.compile(network, dynamic=False) if arguments.side.endswith("compile") else network
    synchronise = torch.cuda.synchronize if cuda else (lambda: None)

    def infer():
        with torch.inference_mode():
            return run(picture)
    network.eval()
    result = checked(arguments, infer().cpu().numpy())
    result["inference_s"] = median_time(infer, synchronise, arguments.runs)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    labels = torch.from_numpy(bm_eanet.labels_like(small)).long().to(device)
    small = torch.from_numpy(small).to(device).to(memory_format=torch.channels_last)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(small), labels, ignore_index=255).backward()
        optimizer.step()
    result["training_s"] = median_time(step, synchronise, max(arguments.runs // 2, 3))
    return dict(result, torch=torch.__version__)


def checked(arguments, logits: np.ndarray) -> dict:
    """The error against jea's float32 logits, which the first side leaves in the folder."""
    path = Path(arguments.folder, "logits.npy")
    if not path.exists():
        np.save(path, logits)
    wanted = np.load(path)
    error = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    if not error <= (2e-2 if arguments.tf32 else 1e-4):
        raise SystemExit(f"{arguments.side}: logits differ by {error:.1e} of the largest")
    return {"error_of_logits": error}


def double_norm_bandwidth(cuda: bool) -> dict:
    """Bytes that must move forward (x in, y out) by time, and the copy's for comparison."""
    from jea._jittor import jt
    from jea.ops import double_norm
    synchronise, results = (lambda: jt.sync_all(True)), {}
    source = jt.randn(64 << 20) if cuda else jt.randn(1 << 20)
    source.sync()
    results["copy_GB_per_s"] = 8e-9 * source.numel() / median_time(lambda: (source + 1.0).sync(), synchronise, 10)
    for shape in ((1, 64, 4225), (8, 64, 16641), (64, 64, 16641)) if cuda else ((1, 64, 4225),):
        for dtype in ("float32", "float16", "bfloat16") if cuda else ("float32",):
            for layout in ("bsn", "bns"):
                x = jt.randn(shape if layout == "bsn" else (shape[0], shape[2], shape[1]))
                x = x.cast(dtype) if dtype != "float32" else x
                g = jt.randn(x.shape).cast(dtype) if dtype != "float32" else jt.randn(x.shape)
                jt.sync([x, g])
                size = x.numel() * (4 if dtype == "float32" else 2)

                def both():
                    jt.grad((double_norm(x, layout=layout, impl="fused") * g).sum(), x).sync()
                forward = median_time(lambda: double_norm(x, layout=layout, impl="fused").sync(), synchronise, 10)
                results[f"{dtype} {layout} {shape}"] = {
                    "forward_s": forward, "forward_GB_per_s": 2e-9 * size / forward,
                    "forward_and_backward_s": median_time(both, synchronise, 10)}
    return results


if __name__ == "__main__":
    raise SystemExit(main())
