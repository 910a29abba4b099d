"""EANet-R50 (output stride 8) on the CPU: jea, plain and fused, against PyTorch eager with the same weights.

    python tests/bench/bm_eanet.py                      # inference at 513 x 513, training step at 2 x 257 x 257
    python tests/bench/bm_eanet.py --compile            # inference also against torch.compile
    python tests/bench/bm_eanet.py --runtimes           # and against ONNX Runtime and OpenVINO (packages onnx,
                                                        # onnxruntime, openvino), on the ONNX form of PyTorch's network
    python tests/bench/bm_eanet.py --size 321 --runs 5 --skip-training --json result.json

Logits are compared before anything is timed: beyond 2e-5 of the largest there are no numbers. The sides run in turn
(interleaved) and medians are shown; peak memory is that of a process of its own per side.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
from sides import jea_inference  # noqa: E402
from torch_eanet import torch_eanet  # noqa: E402

from jea.commands.bench import interleaved, machine, table, threads  # noqa: E402

TOLERANCE = 2e-5
SIDES = ("jea", "jea fused", "torch contiguous", "torch channels_last")
COMPILED = "torch compiled"  # torch.compile with freezing, with --compile
RUNTIMES = ("ONNX Runtime", "OpenVINO")  # with --runtimes
TRAINING_SIDES = ("jea", "torch contiguous", "torch channels_last")


# -- the networks ----------------------------------------------------------------------------------------------------

def jea_eanet():
    import jea
    from jea._jittor import jt
    jt.set_global_seed(0)
    return jea.create_model("eanet_resnet50", output_stride=8, num_classes=21, dropout=0.0)


# -- the sides: name -> function that runs once to the end -----------------------------------------------------------

def inference_side(side: str, x: np.ndarray, state=None):
    """A function that returns the logits, numpy. `state`: jea's parameters by name, for PyTorch."""
    if side.startswith("jea"):
        from jea.nn import fuse
        model = jea_eanet() if state is None else state
        model.eval()
        if side == "jea fused":
            model = fuse(model)
        return jea_inference(model, x)
    import torch
    if side in RUNTIMES:
        return runtime_side(side, x, copied(torch_eanet(), state).eval())
    layout = torch.channels_last if side.endswith("channels_last") else torch.contiguous_format
    model = copied(torch_eanet(), state).eval().to(memory_format=layout)
    if side == "torch compiled":
        from torch._inductor import config
        config.freezing = True
        model = torch.compile(model)
    picture = torch.from_numpy(x).to(memory_format=layout)

    def run():
        with torch.no_grad():
            return model(picture).numpy()
    return run


def runtime_side(side: str, x: np.ndarray, network):
    """inference_side of a runtime that reads ONNX, on as many threads as the others have."""
    import torch
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/eanet.onnx"
        # Not dynamo=True: its optimiser takes the 1e-9 of the normalisation for nothing and drops the sum.
        torch.onnx.export(network, (torch.from_numpy(x),), path, dynamo=False)
        if side == "ONNX Runtime":
            import onnxruntime
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            return lambda: session.run(None, {name: x})[0]
        import openvino
        options = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY"}
        if side == "OpenVINO":  # any other name: as it comes, in bfloat16 where the processor has it
            options["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = openvino.Core().compile_model(path, "CPU", options)
    request = compiled.create_infer_request()

    def run():
        request.infer({0: x}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()
    return run


def training_side(side: str, x: np.ndarray, labels: np.ndarray, model, precision: str = "float32"):
    """A function that makes one step of SGD and returns the loss before it."""
    settings = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
    if side.startswith("jea"):
        from jea._jittor import jt
        from jea.data import Batch
        from jea.tasks.options.training import TrainOptions
        from jea.tasks.segmentation import pixel_cross_entropy
        from jea.training.phase import Phase, run_step
        model = jea_eanet() if model is None else model
        model.train()
        batch = Batch({"image": x, "label": labels})
        phase = Phase(name="segmentation", optimizer=jt.optim.SGD(model.parameters(), **settings),
                      losses=lambda batch: {
            "loss": pixel_cross_entropy(model(jt.array(batch["image"])), jt.array(batch["label"]))})
        options = TrainOptions(precision=precision)
        return lambda: run_step([phase], batch, 0, options)["loss"]
    import torch
    layout = torch.channels_last if side.endswith("channels_last") else torch.contiguous_format
    network = copied(torch_eanet(), model).train().to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    x, labels = torch.from_numpy(x).to(memory_format=layout), torch.from_numpy(labels).long()

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=255, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return run


def copied(network, model):
    import torch
    if model is not None:
        own = {k: torch.from_numpy(v.numpy().copy()) for k, v in model.state_dict().items()}
        missing, unexpected = network.load_state_dict(own, strict=False)
        if unexpected or any("num_batches_tracked" not in name for name in missing):
            raise SystemExit(f"the two networks differ: {missing}, {unexpected}")
    return network


def picture(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def labels_like(x: np.ndarray) -> np.ndarray:
    labels = np.random.default_rng(1).integers(0, 21, (len(x),) + x.shape[2:]).astype(np.int32)
    labels[:, :8] = 255  # ignored, but counted in the mean, as upstream does
    return labels


def randomise_statistics(model) -> None:
    """Running statistics that no BatchNorm starts with, so that a wrong one shows."""
    from jea._jittor import jt
    rng = np.random.default_rng(2)
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.assign(jt.array(rng.standard_normal(value.shape).astype(np.float32) * 0.1))
        elif name.endswith("running_var"):
            value.assign(jt.array(rng.random(value.shape).astype(np.float32) + 0.5))


# -- measuring -----------------------------------------------------------------------------------------------------

def sgemm_function():
    import torch
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: a @ b


def inference_gflop(size: int) -> float:
    """Multiplications and additions of all convolutions and of the attention, counted on the PyTorch network."""
    import torch
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += 2 * output.numel() * module.weight[0].numel()
    network = torch_eanet().eval()
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    return total / 1e9


def peak_memory(what: str, side: str, size: int) -> float:
    """MB, of a process that runs this side alone, twice."""
    command = [sys.executable, __file__, "--memory-of", what, side, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def run_for_memory(what: str, side: str, size: int) -> None:
    x = picture(1 if what == "inference" else 2, size)
    run = inference_side(side, x) if what == "inference" else training_side(side, x, labels_like(x), None)
    run()
    run()
    print(peak_of_this_process())


def peak_of_this_process() -> float:
    """MB. Not ru_maxrss where /proc is: a child inherits its parent's."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench_inference(size: int, runs: int, sides) -> dict:
    x, model = picture(1, size), jea_eanet()
    randomise_statistics(model)
    functions = {side: inference_side(side, x, model) for side in sides}
    logits = {side: function() for side, function in functions.items()}
    wanted = logits["torch contiguous"]
    errors = {side: float(np.abs(y - wanted).max() / np.abs(wanted).max()) for side, y in logits.items()}
    if not max(errors.values()) <= TOLERANCE:
        raise SystemExit(f"logits differ by more than {TOLERANCE:.0e} of the largest: {errors}; nothing is timed")
    gflop = inference_gflop(size)
    functions["sgemm"] = sgemm_function()
    for function in functions.values():
        function()
    seconds = interleaved(functions, runs)
    sgemm = 2 * 2048 ** 3 / 1e9 / seconds.pop("sgemm")["best"]
    best = min(seconds[side]["median"] for side in SIDES if side.startswith("torch"))  # eager
    rows = {side: {**seconds[side], "error": errors[side], "ratio to torch's best": seconds[side]["median"] / best,
                   "GFLOP/s": gflop / seconds[side]["median"],
                   # a runtime's process would be judged by the export to ONNX
                   "peak MB": None if side in RUNTIMES else peak_memory("inference", side, size)}
            for side in sides}
    return {"size": size, "GFLOP": gflop, "SGEMM GFLOP/s": sgemm, "sides": rows}


def bench_training(size: int, runs: int) -> dict:
    x = picture(2, size)
    labels, model = labels_like(x), jea_eanet()
    functions = {side: training_side(side, x, labels, model) for side in TRAINING_SIDES if side != "jea"}
    functions = {"jea": training_side("jea", x, labels, model), **functions}
    losses = {side: function() for side, function in functions.items()}
    errors = {side: abs(loss / losses["torch contiguous"] - 1) for side, loss in losses.items()}
    if not max(errors.values()) <= 1e-4:
        raise SystemExit(f"losses differ: {losses}; nothing is timed")
    for function in functions.values():
        function()
    seconds = interleaved(functions, runs)
    best = min(seconds[side]["median"] for side in TRAINING_SIDES if side.startswith("torch"))
    return {"size": size, "sides": {
        side: {**seconds[side], "error": errors[side], "ratio to torch's best": seconds[side]["median"] / best,
               "peak MB": peak_memory("training", side, size)} for side in TRAINING_SIDES}}


FORMATS = {"error": "{:.1e}", "GFLOP/s": "{:.0f}", "peak MB": "{:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="side of the picture (513; training: 257)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each side (9)")
    parser.add_argument("--compile", action="store_true", help="inference also with torch.compile and freezing")
    parser.add_argument("--runtimes", action="store_true", help="inference also with ONNX Runtime and OpenVINO")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--skip-inference", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--memory-of", nargs=2, metavar=("WHAT", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        run_for_memory(*arguments.memory_of, arguments.size)
        return
    import torch  # noqa: F401  (before Jittor)
    result = {"machine": machine()}
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()))
    if not arguments.skip_inference:
        sides = SIDES + (COMPILED,) * arguments.compile + RUNTIMES * arguments.runtimes
        result["inference"] = bench_inference(arguments.size or 513, arguments.runs, sides)
        print(f"\nInference, 1 x {result['inference']['size']}^2: {result['inference']['GFLOP']:.0f} GFLOP; "
              f"SGEMM reaches {result['inference']['SGEMM GFLOP/s']:.0f} GFLOP/s")
        print(table(result["inference"]["sides"], FORMATS))
    if not arguments.skip_training:
        result["training"] = bench_training(arguments.size or 257, arguments.runs)
        print(f"\nTraining step, 2 x {result['training']['size']}^2\n" + table(result["training"]["sides"], FORMATS))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
