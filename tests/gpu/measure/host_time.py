"""What a training step on CUDA costs the host, without a GPU: with stub libraries and kernels that do nothing.

    python tests/gpu/measure/host_time.py [--work FOLDER] [--steps N]

Four networks; each step in two forms, in turns, in one process: "apart" is Jittor's own optimizer, an update for each
layer's running statistics and a host that reads the losses at once; "together" is what jea does (jea/ops/training,
jea/training/reading.py). FOLDER is compile.py's --work: it keeps Jittor's core for the next time.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu")]

NETWORKS = {  # name -> (model, inputs, optimizer)
    "EANet-R50, SGD": ("eanet_resnet50", {"output_stride": 8}, (2, 3, 257, 257), "SGD"),
    "EAMLP-14, AdamW": ("eamlp_14", {}, (4, 3, 224, 224), "AdamW"),
    "EA-PCT, SGD": ("ea_pct_cls", {}, (4, 3, 1024), "SGD"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return measure(arguments.steps)
    import stubs
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).absolute()
        stubs.make(work / "stubs")
        for folder in ("home", "asked"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-W", "ignore", __file__, "--child", "--steps", str(arguments.steps)]
        return subprocess.run(command, env=stubs.environment(work), cwd=ROOT).returncode


@contextlib.contextmanager
def apart():
    """Optimizer and statistics as Jittor's own functions, parameter by parameter."""
    from jea.nn import norm
    from jea.training import phase
    from jea.training.averages import WeightAverage
    from jea.training.optimizers import Controlled
    before = Controlled.step, norm.collected, WeightAverage.update
    Controlled.step = lambda self, loss=None, retain_graph=False, *, control=None: self.own_step(loss, retain_graph)
    phase.norm.collected = lambda wanted: before[1](False)
    try:
        yield
    finally:
        Controlled.step, norm.collected, WeightAverage.update = before


def measure(steps: int) -> int:
    import os

    from jea._jittor import jt
    assert jt.has_cuda, "Jittor did not take the stubs"
    jt.flags.use_cuda = 1
    from jea.data import Batch
    from jea.models import create_model
    from jea.ops.convolution.cudnn import check, plans
    from jea.tasks.options.training import TrainOptions
    from jea.training import optimizers, reading
    from jea.training.phase import Phase, begin_step
    from jea.training.reading import Gate, Told
    check.unavailable = lambda *_, **__: ""  # no plan comes of kernels that do nothing
    plans.plan = lambda *_, **__: plans.Plan(address=1, forward=1, backward=1, refused="")
    Told._check = lambda *_: None
    reading._wrong = lambda: ""
    for name, (model, options, shape, optimizer) in NETWORKS.items():
        network = create_model(model, **options)
        parameters = [var for var in network.parameters() if not var.is_stop_grad()]

        def losses(batch):
            output = network(batch["x"])
            return {"loss": (output * output).mean()}
        phase = Phase(name=name, losses=losses, optimizer=getattr(optimizers, optimizer)(parameters, lr=0.1))
        batch, seconds = Batch(x=jt.randn(*shape)), {"apart": [], "together": []}
        gates = {"apart": Gate(), "together": Gate()}
        gates["apart"].later = False
        for step in range(2 * steps + 4):
            kind = ("apart", "together")[step % 2]
            with apart() if kind == "apart" else contextlib.nullcontext():
                started = time.perf_counter()
                read = begin_step([phase], batch, step, TrainOptions(), gates[kind])
                seconds[kind].append(time.perf_counter() - started)
                read()
        told = {kind: round(1000 * statistics.median(values[2:]), 2) for kind, values in seconds.items()}
        print(json.dumps({"network": name, "parameters": len(parameters), "milliseconds": told}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # without the teardown, which the stubs may not survive


if __name__ == "__main__":
    raise SystemExit(main())
