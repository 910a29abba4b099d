"""EA-PCT classification on the CPU: jea against PyTorch eager with the same weights; cost against the number of points.

    python tests/bench/bm_points.py                  # inference and training step, 16 clouds of 1024 points
    python tests/bench/bm_points.py --batch 4 --runs 3 --skip-scaling --json result.json

PyTorch's side is upstream's formulation (tests/models/torch_pct.py). Logits are compared before anything is timed:
beyond 2e-5 of the largest there are no numbers. The sides run in turn (interleaved) and medians are shown.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support"), str(TESTS / "bench")]
from sides import jea_inference, jea_training, torch_inference, torch_training  # noqa: E402

from jea.commands.bench import interleaved, machine, threads  # noqa: E402

TOLERANCE = 2e-5


def clouds(batch: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, n)).astype(np.float32)


def jea_model(attention: str):
    import jea
    from jea._jittor import jt
    jt.set_global_seed(0)
    return jea.create_model("ea_pct_cls", attention=attention, dropout=0.0)


def torch_model(attention: str, model):
    import torch
    import torch_pct
    torch.set_num_threads(threads())
    network = torch_pct.Classifier(attention)
    state = {key: torch.from_numpy(value.numpy().copy()) for key, value in model.state_dict().items()}
    state.update({key.replace("k_conv", "q_conv"): value for key, value in state.items() if "k_conv" in key})
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
        raise SystemExit(f"the two models differ: {missing}, {unexpected}")
    return network


def inference_sides(attention: str, x: np.ndarray) -> dict:
    """Side -> function that returns the logits."""
    from jea.nn import fuse
    model = jea_model(attention)
    network = torch_model(attention, model).eval()
    model.eval()
    return {"jea": jea_inference(model, x), "jea fused": jea_inference(fuse(model), x),
            "torch": torch_inference(network, x)}


def training_sides(attention: str, x: np.ndarray) -> dict:
    """Side -> function that makes one step of SGD and returns the loss before it."""
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
    labels = np.random.default_rng(1).integers(0, 40, len(x)).astype(np.int32)
    model = jea_model(attention)
    network = torch_model(attention, model)
    model.train()
    network.train()
    return {"jea": jea_training(model, x, labels, **settings), "torch": torch_training(network, x, labels, **settings)}


def compare(functions: dict, runs: int) -> dict:
    values = {side: np.asarray(function()) for side, function in functions.items()}
    largest = np.abs(values["torch"]).max()
    error = max(float(np.abs(value - values["torch"]).max() / largest) for value in values.values())
    if not error <= TOLERANCE:
        raise SystemExit(f"the sides differ by {error:.1e} of the largest value; nothing is timed")
    for function in functions.values():
        function()
    seconds = interleaved(functions, runs)
    return {"error": error, "ratio": min(seconds[side]["median"] for side in seconds if side != "torch") /
            seconds["torch"]["median"], **seconds}


def operator_sides(x: np.ndarray) -> dict:
    """Operator -> sides, 512 samples and 32 neighbours of each."""
    import torch
    import torch_pct

    from jea._jittor import jt
    from jea.ops import farthest_point_sample, gather_points, knn
    xyz = np.ascontiguousarray(x.transpose(0, 2, 1))
    ours, theirs = jt.array(xyz), torch.from_numpy(xyz)
    features = jt.randn(len(x), 64, x.shape[2])
    their_features = torch.from_numpy(features.numpy().transpose(0, 2, 1).copy())
    index = knn(ours[:, :512], ours, 32)
    their_index = torch.from_numpy(index.numpy()).long()
    return {
        "farthest_point_sample": {"jea": lambda: farthest_point_sample(ours, 512).numpy(),
                                  "torch": lambda: torch_pct.farthest_points(theirs, 512).numpy()},
        "knn": {"jea": lambda: np.sort(knn(ours[:, :512], ours, 32).numpy()),
                "torch": lambda: np.sort(torch_pct.nearest_points(theirs[:, :512], theirs, 32).numpy())},
        "gather_points": {"jea": lambda: gather_points(features, index).numpy(),
                          "torch": lambda: torch_pct.take(their_features, their_index).permute(0, 3, 1, 2).numpy()},
    }


def bench_scaling(sizes, runs: int) -> list:
    """Forward pass of one attention layer at C = 256, one cloud: median seconds by N."""
    from jea._jittor import jt
    from jea.models.ea_point import OffsetAttention
    layers, rows = {kind: OffsetAttention(256, kind, 64) for kind in ("external", "self")}, []
    for n in sizes:
        x = jt.randn(256, n)
        functions = {kind: (lambda layer=layer: layer(x, 1).sync()) for kind, layer in layers.items()}
        with jt.no_grad():
            for layer, function in zip(layers.values(), functions.values()):
                layer.eval()
                function()
                function()
            seconds = interleaved(functions, runs)
        rows.append({"points": n, **{kind: seconds[kind]["median"] for kind in functions}})
        jt.gc()
    return rows


def show(title: str, result: dict) -> None:
    sides = [f"{side} {1e3 * value['median']:9.1f} ms" for side, value in result.items() if isinstance(value, dict)]
    print(f"{title:46}{'   '.join(sides)}   "
          f"ratio {result['ratio']:.3f}   difference {result['error']:.0e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="clouds (16)")
    parser.add_argument("--points", type=int, default=1024, help="of each cloud (1024)")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each side (7)")
    parser.add_argument("--attention", default="external", choices=("external", "self"))
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--skip-scaling", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    arguments = parser.parse_args()
    import torch  # noqa: F401  (before Jittor)
    x, runs = clouds(arguments.batch, arguments.points), arguments.runs
    what = f"{arguments.batch} x {arguments.points}"
    result = {"machine": machine()}
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()) + "\n")
    for name, functions in operator_sides(x[:8]).items():
        result[name] = compare(functions, runs)
        show(f"{name}, {len(x[:8])} x {arguments.points}, 512, 32", result[name])
    result["inference"] = compare(inference_sides(arguments.attention, x), runs)
    show(f"inference, {arguments.attention}, {what}", result["inference"])
    if not arguments.skip_training:
        result["training"] = compare(training_sides(arguments.attention, x), runs)
        show(f"training step, {arguments.attention}, {what}", result["training"])
    if not arguments.skip_scaling:
        result["scaling"] = bench_scaling((512, 1024, 2048, 4096, 8192), runs)
        print("\nOne attention layer, 256 channels, one cloud, forward, ms\npoints   external       self")
        for row in result["scaling"]:
            print(f"{row['points']:6} {1e3 * row['external']:10.2f} {1e3 * row['self']:10.2f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
