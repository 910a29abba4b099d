"""Five training steps of EANet-R50 as tests/tasks/test_segmentation_parity.py runs them, layer by layer.

    python tests/gpu/measure/steps.py OUT.npz [--device cuda] [--deterministic] [--compare OTHER.npz]
        [--start START.npz]
    python tests/gpu/measure/steps.py OUT.npz --torch START.npz [--device cuda] [--compare OTHER.npz]

Writes the losses and, before each step and at the end, 64 values of every parameter. --compare says where two runs (two
devices, two choices of algorithms) begin to differ, and how far both are from the stored float64 run. --start keeps the
weights before the first step and the optimizer's groups, from which --torch makes the same steps in PyTorch: what
float32 costs any library there.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fixtures")]
FIXTURES = ROOT / "tests" / "fixtures"


def run(arguments) -> dict:
    import recipe

    from jea import environment
    environment.choose_device(arguments.device)
    from jea._jittor import jt
    jt.flags.use_cuda = int(arguments.device == "cuda")
    if arguments.deterministic:
        jt.cudnn.set_algorithm_cache_size(0)
    import jea
    from jea.checkpoint.loading import write
    from jea.data.dataset import Batch
    from jea.tasks.segmentation import Segmentation
    from jea.training.log import LOG
    from jea.training.loop import train
    manifest = json.loads((FIXTURES / "eanet50_s16_sgd5_frozenbn.json").read_text())
    task = Segmentation(model={"name": "eanet_resnet50", "output_stride": 16, "dropout": 0.0},
                        data={"name": "voc", "root": "unused"},
                        train=dict(steps=45, batch_size=4, lr=0.009, lr_decay_every=1, freeze_batch_norm=True,
                                   log_every=1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.pth")
        write(path, {"module." + k: v for k, v in recipe.fill_state(manifest["state"], "").items()}, wrapper="net")
        jea.load_weights(task.model, str(path))
        image = manifest["inputs"]["sgd/image/4x3x65x65"]["shape"]
        batch = Batch(image=recipe.input_array("sgd/image/4x3x65x65", image),
                      label=recipe.label_map("sgd/label/4x65x65", (4, 65, 65), n_classes=21).astype(np.int32))
        Segmentation.batches_per_epoch = property(lambda self: 1000)
        task.batches = lambda epoch, start: (batch for _ in range(1000))
        found, make_phases = {}, task.phases

        def sample(label):
            for name, var in task.model.state_dict().items():
                values = var.numpy().reshape(-1)
                found[f"{label}/{name}"] = values[recipe.sample_indices(name, values.size, 64)]

        def phases(total):
            made = make_phases(total)
            for phase in made:
                set_rates = phase.set_rates
                phase.set_rates = lambda step, set_rates=set_rates: (sample(step), set_rates(step))[1]
            return made
        task.phases = phases
        if arguments.start:
            state = task.model.state_dict()
            names = {id(var): name for name, var in state.items()}
            groups = [{"names": [names[id(var)] for var in group["params"]],
                       "weight_decay": group.get("weight_decay", 0.)}
                      for group in make_phases(45)[0].optimizer.param_groups]
            np.savez(arguments.start, __groups__=json.dumps(groups),
                     **{name: var.numpy() for name, var in state.items()})
        train(task, Path(folder), stop_after=5, progress=False)
        sample("end")
        found["losses"] = np.array([json.loads(line)["loss"] for line in Path(folder, LOG).read_text().splitlines()])
    return found


def run_torch(arguments) -> dict:
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    import bm_eanet
    import recipe
    import torch
    from torch.nn import functional as F
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = arguments.deterministic
    network = bm_eanet.torch_eanet(output_stride=16)
    with np.load(arguments.torch) as stored:
        groups = json.loads(str(stored["__groups__"]))
        network.load_state_dict({key: torch.from_numpy(stored[key]) for key in stored.files
                                 if key in network.state_dict()},
                                strict=False)
    network.to(arguments.device).to(memory_format=torch.channels_last)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    by_name = dict(network.named_parameters())
    optimizer = torch.optim.SGD([{"params": [by_name[name] for name in group["names"]],
                                  "weight_decay": group["weight_decay"]} for group in groups], lr=0.009, momentum=0.9)
    image = torch.from_numpy(recipe.input_array("sgd/image/4x3x65x65", (4, 3, 65, 65))).to(arguments.device)
    label = torch.from_numpy(recipe.label_map("sgd/label/4x65x65", (4, 65, 65),
                                              n_classes=21)).long().to(arguments.device)
    with np.load(FIXTURES / "eanet50_s16_sgd5_frozenbn.npz") as stored:
        rates = stored["lrs"]
    found, losses = {}, []

    def sample(step):
        for name, var in network.state_dict().items():
            values = var.detach().cpu().contiguous().numpy().reshape(-1)
            found[f"{step}/{name}"] = values[recipe.sample_indices(name, values.size, 64)]
    for step, rate in enumerate(rates):
        sample(step)
        for group, lr in zip(optimizer.param_groups, rate):
            group["lr"] = float(lr)
        loss = F.cross_entropy(network(image.to(memory_format=torch.channels_last)), label, ignore_index=255,
                               reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sample("end")
    return dict(found, losses=np.array(losses))


def compare(first: dict, second: dict) -> None:
    with np.load(FIXTURES / "eanet50_s16_sgd5_frozenbn.npz") as stored:
        exact = stored["f64/losses"]
    for name, losses in (("this run", first["losses"]), ("the other", second["losses"])):
        print(f"{name}: losses {losses}, off the float64 run by {np.abs(losses - exact) / exact.max()}")
    labels = sorted({key.split("/")[0] for key in first if "/" in key}, key=lambda label: (label == "end", label))
    start = labels[0]
    for label in labels[1:]:
        errors = {}
        for key in first:
            if key.startswith(label + "/") and key in second:
                name = key[len(label) + 1:]
                a, b = (run[key].astype(np.float64) - run[f"{start}/{name}"] for run in (first, second))
                if np.abs(b).max() > 0:
                    errors[name] = float(np.abs(a - b).max() / np.abs(b).max())
        worst = sorted(errors, key=errors.get, reverse=True)[:6]
        print(f"changes of weights before step {label}: median difference {np.median(list(errors.values())):.1e}; "
              "largest: "
              + ", ".join(f"{name} {errors[name]:.1e}" for name in worst))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--torch", type=Path)
    arguments = parser.parse_args()
    found = run_torch(arguments) if arguments.torch else run(arguments)
    np.savez_compressed(arguments.out, **found)
    print("losses", found["losses"].tolist(), flush=True)
    if arguments.compare:
        compare(found, dict(np.load(arguments.compare)))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    import os
    os._exit(status)
