"""jea's operators against PyTorch's composed versions, and external against softmax self-attention over the positions.

    python tests/bench/bm_ops.py                     # operators
    python tests/bench/bm_ops.py --scaling           # also N = 1k, 4k, 16k, 64k at 512 channels: time and peak memory
    python tests/bench/bm_ops.py --json ops.json --plot scaling.png

Outputs and gradients are compared before anything is timed. The sides run in turn (interleaved); medians, and ratios of
PyTorch's to jea's time. Self-attention is PyTorch's scaled_dot_product_attention.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bm_eanet import peak_of_this_process  # noqa: E402

from jea.commands.bench import POSITIONS, interleaved, machine, scaling_png, table, threads  # noqa: E402

TOLERANCE = 2e-5


def normal(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# -- the sides: functions that return [output, gradients] ------------------------------------------------------------

def jea_side(function, arrays, g):
    from jea._jittor import jt
    from jea.ops.function import Function
    inputs, g = [jt.array(a) for a in arrays], jt.array(g)

    class Loss(Function):
        """Whose gradient is g, as torch.autograd.grad takes it: (y * g).sum() would be timed too."""

        def execute(self, y):
            return y

        def grad(self, _):
            return g

    def run():
        y = function(*inputs)
        found = [y, *jt.grad(Loss.apply(y), inputs)]
        jt.sync(found)
        return found
    return run


def torch_side(function, arrays, g):
    import torch
    inputs, g = [torch.from_numpy(a).requires_grad_() for a in arrays], torch.from_numpy(g)

    def run():
        y = function(*inputs)
        return [y, *torch.autograd.grad(y, inputs, g)]
    return run


def torch_double_norm(x, positions=-1, memories=1):
    a = x.softmax(positions)
    return a / (1e-9 + a.sum(memories, keepdim=True))


def torch_external_attention(x, m_k, m_v):
    return torch_double_norm(x @ m_k.T, positions=1, memories=-1) @ m_v


def compared(jea_run, torch_run, title: str) -> dict:
    """{"jea": function, "torch": function} once their results agree."""
    for number, (got, wanted) in enumerate(zip(jea_run(), torch_run())):
        wanted = wanted.detach().numpy()
        error = float(np.abs(got.numpy() - wanted).max() / np.abs(wanted).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{title}: result {number} differs by {error:.1e} of the largest; nothing is timed")
    return {"jea": jea_run, "torch": torch_run}


def attention_operators() -> dict:
    from jea.ops import double_norm, external_attention
    cases = {}
    for b, s, n in ((1, 64, 4225), (8, 64, 16641)):
        title, arrays, g = f"double_norm {b} x {s} x {n}, fwd + bwd", [normal(b, s, n)], normal(b, s, n)
        sides = compared(jea_side(double_norm, arrays, g), torch_side(torch_double_norm, arrays, g), title)
        cases[title] = {**sides, "composed": jea_side(lambda x: double_norm(x, impl="ref"), arrays, g)}
    arrays = [normal(1, 4225, 512), normal(64, 512) * np.float32(0.1), normal(64, 512) * np.float32(0.1)]
    title, g = "external_attention 1 x 4225 x 512, fwd + bwd", normal(1, 4225, 512)
    cases[title] = {**compared(jea_side(external_attention, arrays, g), torch_side(torch_external_attention, arrays, g),
                               title),
                    "composed": jea_side(lambda *v: external_attention(*v, impl="ref"), arrays, g)}
    return cases


def point_operators() -> dict:
    import torch

    from jea._jittor import jt
    from jea.ops import farthest_point_sample, knn
    points = np.random.default_rng(0).uniform(-1, 1, (8, 1024, 3)).astype(np.float32)
    var, tensor = jt.array(points), torch.from_numpy(points)

    def jea_farthest():
        found = farthest_point_sample(var, 512)
        found.sync()
        return found

    def torch_farthest():
        rows, chosen = torch.arange(8), torch.zeros(8, 512, dtype=torch.long)
        distance, last = torch.full((8, 1024), torch.inf), torch.zeros(8, dtype=torch.long)
        distance[(tensor * tensor).sum(-1) <= 1e-3] = -1  # points near 0 are never chosen
        for i in range(1, 512):
            distance = torch.minimum(distance, ((tensor - tensor[rows, last][:, None]) ** 2).sum(-1))
            last = distance.argmax(1)
            chosen[:, i] = last
        return chosen

    def jea_knn():
        found = knn(var, var, 32)
        found.sync()
        return found

    def torch_knn():
        return torch.cdist(tensor, tensor).topk(32, largest=False).indices
    if not np.array_equal(jea_farthest().numpy(), torch_farthest().numpy()):
        raise SystemExit("farthest_point_sample: the indices differ; nothing is timed")
    # Against the exact answer: cdist goes through a matrix product, which in some runs costs it a neighbour.
    squares = ((points[:, :, None] - points[:, None]) ** 2).sum(-1)
    if not np.array_equal(jea_knn().numpy(), squares.argsort(axis=2, kind="stable")[..., :32]):
        raise SystemExit("knn: the indices differ from those of a full sort; nothing is timed")
    return {"farthest_point_sample 8 x 1024 -> 512": {"jea": jea_farthest, "torch": torch_farthest},
            "knn 8 x 1024, k = 32": {"jea": jea_knn, "torch": torch_knn}}


def bench_operators(runs: int) -> dict:
    rows = {}
    for title, sides in {**attention_operators(), **point_operators()}.items():
        for function in sides.values():
            function()
        seconds = {side: value["median"] * 1e3 for side, value in interleaved(sides, runs).items()}
        composed = seconds.get("composed")
        rows[title] = {"jea ms": seconds["jea"], "torch ms": seconds["torch"], "composed ms": composed,
                       "torch / jea": seconds["torch"] / seconds["jea"],
                       "composed / jea": composed / seconds["jea"] if composed else None}
    return rows


# -- scaling
# ------------------------------------------------------------------------------------------------------------

def scaling_side(side: str, n: int):
    """Forward of one attention over (1, n, 512)."""
    x = normal(1, n, 512) * np.float32(0.1)
    if side == "external":
        from jea._jittor import jt
        from jea.ops import external_attention
        x, memories = jt.array(x), [jt.array(normal(64, 512) * np.float32(0.1)) for _ in range(2)]
        return lambda: external_attention(x, *memories).sync()
    import torch
    torch.set_num_threads(threads())
    x = torch.from_numpy(x)[:, None]  # one head
    return lambda: torch.nn.functional.scaled_dot_product_attention(x, x, x)


def bench_scaling(runs: int) -> dict:
    rows = {}
    for n in POSITIONS:
        sides = {side: scaling_side(side, n) for side in ("external", "self")}
        for function in sides.values():
            function()
        seconds = interleaved(sides, runs if n < 16384 else 1)
        rows[f"N = {n}"] = {**{f"{side} ms": seconds[side]["median"] * 1e3 for side in sides},
                            **{f"{side} MB": peak_of(side, n) for side in sides}}
    return rows


def peak_of(side: str, n: int) -> float:
    """MB that a process of its own needs more than for 64 positions."""
    def run(count):
        done = subprocess.run([sys.executable, __file__, "--memory-of", side, str(count)], capture_output=True,
                              text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return float(done.stdout.split()[-1])
    return run(n) - run(64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each side (15)")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="PNG", help="picture of --scaling")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        side, n = arguments.memory_of
        scaling_side(side, int(n))()
        print(peak_of_this_process())
        return
    import torch  # before Jittor
    torch.set_num_threads(threads())
    result = {"machine": machine(), "operators": bench_operators(arguments.runs)}
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()), "\n")
    print(table(result["operators"]))
    if arguments.scaling or arguments.plot:
        result["scaling"] = bench_scaling(max(arguments.runs // 3, 1))
        print("\n" + table(result["scaling"]))
    if arguments.plot:
        times = {n: {k: v for k, v in row.items() if k.endswith("ms")} for n, row in result["scaling"].items()}
        scaling_png(arguments.plot, times, title="forward time in ms, 512 channels")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
