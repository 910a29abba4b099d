"""bfloat16 on the CPU: jea's against PyTorch's autocast and OpenVINO as it comes, which is bfloat16 where the processor
has it (package openvino).

    python tests/bench/bm_bfloat16.py                       # EANet-R50 at 513, EAMLP-14 at batch 1 and 16, training
    python tests/bench/bm_bfloat16.py --networks eamlp_14 --batches 1 --runs 5 --skip-training --json result.json

Nothing is timed where a side's logits are off those of float32 by more than 2e-2 of the largest (random weights, a
picture of noise: "same class" is the share of outputs whose largest stays the same there). The sides run in turn
(interleaved) and medians are shown; peak memory is that of a process of its own.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bm_eamlp
import bm_eanet
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sides import jea_inference  # noqa: E402

from jea.commands.bench import interleaved, machine, table, threads  # noqa: E402

TOLERANCE = 2e-2
JEA, JEA_HALF = "jea float32", "jea bfloat16"
AUTOCAST, OPENVINO = "torch.autocast bfloat16", "OpenVINO as it comes"
FORMATS = {"error": "{:.1e}", "same class": "{:.5f}", "peak MB": "{:.0f}"}


def jea_side(model, side: str, x: np.ndarray):
    import jea
    return jea_inference(jea.fuse(model, precision="bfloat16" if side == JEA_HALF else "float32"), x)


def autocast_side(network, x: np.ndarray):
    import torch
    network, inputs = network.to(memory_format=torch.channels_last), torch.from_numpy(x)
    if x.ndim == 4:
        inputs = inputs.to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return network(inputs).float().numpy()
    return run


def network_pair(name: str):
    """jea's network in evaluation mode, and a function that makes PyTorch's with the same weights."""
    if name.startswith("eanet"):
        model = bm_eanet.jea_eanet()
        bm_eanet.randomise_statistics(model)
        return model.eval() or model, lambda: bm_eanet.copied(bm_eanet.torch_eanet(), model).eval()
    model = bm_eamlp.jea_model(name)
    return model.eval() or model, lambda: bm_eamlp.torch_model(name, model).eval()


def inputs(name: str, batch: int) -> np.ndarray:
    return bm_eanet.picture(batch, 513) if name.startswith("eanet") else bm_eamlp.pictures(batch)


def bench_inference(name: str, batch: int, runs: int) -> dict:
    x, (model, network) = inputs(name, batch), network_pair(name)
    functions = {JEA: jea_side(model, JEA, x), JEA_HALF: jea_side(model, JEA_HALF, x),
                 AUTOCAST: autocast_side(network(), x),
                 OPENVINO: bm_eanet.runtime_side(OPENVINO, x, network())}
    logits = {side: function() for side, function in functions.items()}
    wanted = logits[JEA]
    rows = {side: {"error": float(np.abs(y - wanted).max() / np.abs(wanted).max()),
                   "same class": float((y.argmax(1) == wanted.argmax(1)).mean())} for side, y in logits.items()}
    if not max(row["error"] for row in rows.values()) <= TOLERANCE:
        raise SystemExit(f"{name}: logits differ by more than {TOLERANCE:.0e} of the largest: {rows}; nothing is timed")
    for function in functions.values():
        function()
    seconds = interleaved(functions, runs)
    for side in rows:
        rows[side] = {**seconds[side], **rows[side],
                      "ratio to OpenVINO": seconds[side]["median"] / seconds[OPENVINO]["median"],
                      "peak MB": peak_memory(name, batch, side) if side in (JEA, JEA_HALF) else None}
    return rows


def bench_training(runs: int) -> dict:
    """A step of EANet-R50, 2 x 257 x 257, against torch.autocast with channels last."""
    x = bm_eanet.picture(2, 257)
    labels, model = bm_eanet.labels_like(x), bm_eanet.jea_eanet()
    functions = {AUTOCAST: bm_eanet.training_side("torch channels_last", x, labels, model, "bfloat16"),
                 JEA: bm_eanet.training_side("jea", x, labels, None),
                 JEA_HALF: bm_eanet.training_side("jea", x, labels, None, "bfloat16")}
    losses = {side: function() for side, function in functions.items()}
    errors = {side: abs(loss / losses[JEA] - 1) for side, loss in losses.items()}
    if not max(errors.values()) <= 1e-2:
        raise SystemExit(f"losses differ: {losses}; nothing is timed")
    for function in functions.values():
        function()
    seconds = interleaved(functions, runs)
    return {side: {**seconds[side], "error": errors[side],
                   "ratio to autocast": seconds[side]["median"] / seconds[AUTOCAST]["median"]} for side in functions}


def peak_memory(name: str, batch: int, side: str) -> float:
    done = subprocess.run([sys.executable, __file__, "--memory-of", name, str(batch), side], capture_output=True,
                          text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}, {side}: no peak of memory:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def run_for_memory(name: str, batch: str, side: str) -> None:
    run = jea_side(network_pair(name)[0], side, inputs(name, int(batch)))
    run()
    run()
    print(bm_eanet.peak_of_this_process())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["eanet_resnet50", "eamlp_14"],
                        help="eanet_resnet50 eamlp_7 eamlp_14")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="of the EAMLPs (1 16)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each side (9)")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        run_for_memory(*arguments.memory_of)
        return
    import torch
    torch.set_num_threads(threads())
    result = {"machine": machine()}
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()))
    for name in arguments.networks:
        for batch in arguments.batches if name.startswith("eamlp") else [1]:
            rows = result[f"{name}, batch {batch}"] = bench_inference(name, batch, arguments.runs)
            print(f"\n{name}, inference, batch {batch}\n" + table(rows, FORMATS))
    if not arguments.skip_training:
        result["training"] = bench_training(arguments.runs)
        print("\nEANet-R50, training step, 2 x 257^2\n" + table(result["training"], FORMATS))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
