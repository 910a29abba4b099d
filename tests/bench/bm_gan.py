"""EA-SAGAN (CIFAR-10 size) on the CPU: a discriminator and a generator step of jea against PyTorch eager.

    python tests/bench/bm_gan.py                        # batch 64, both attentions' default: external
    python tests/bench/bm_gan.py --batch 16 --attention self --runs 3 --json result.json

Same weights, pictures, noise and mathematics on both sides: spectral normalisation with one power iteration per
forward, conditional BatchNorm, hinge loss, Adam. The losses of the first steps are compared before anything is timed.
The sides run in turn and medians are shown. PyTorch runs contiguous and channels_last; the faster one counts.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jea.commands.bench import interleaved, machine, threads  # noqa: E402

TOLERANCE = 1e-4


# -- PyTorch's side, with jea's parameter names ------------------------------------------------------------------------

def torch_pair(attention: str, width: int, num_classes: int = 10, z_dim: int = 128, num_memories: int = 64):
    """G and D for 32 x 32 pictures as StudioGAN builds them."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.nn.utils import spectral_norm

    def sn(layer):
        return spectral_norm(layer, eps=1e-6)

    def conv(i, o, k, bias=True):
        return sn(nn.Conv2d(i, o, k, padding=k // 2, bias=bias))

    class ConditionalNorm(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.bn = nn.BatchNorm2d(channels, eps=1e-4, affine=False)
            self.gain, self.bias = (sn(nn.Linear(num_classes, channels, bias=False)) for _ in range(2))

        def forward(self, x, y):
            return self.bn(x) * (1 + self.gain(y))[:, :, None, None] + self.bias(y)[:, :, None, None]

    class SelfAttention(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1x1_theta, self.conv1x1_phi = conv(c, c // 8, 1, False), conv(c, c // 8, 1, False)
            self.conv1x1_g, self.conv1x1_attn = conv(c, c // 2, 1, False), conv(c // 2, c, 1, False)
            self.sigma = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            b, c, h, w = x.shape
            theta = self.conv1x1_theta(x).flatten(2)
            phi, g = (F.max_pool2d(f(x), 2).flatten(2) for f in (self.conv1x1_phi, self.conv1x1_g))
            a = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
            return x + self.sigma * self.conv1x1_attn(torch.bmm(g, a.transpose(1, 2)).view(b, c // 2, h, w))

    class ExternalAttention(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1x1_in, self.linear_0 = conv(c, c, 1, False), conv(c, num_memories, 1, False)
            self.linear_1, self.conv1x1_attn = conv(num_memories, c, 1, False), conv(c, c, 1, False)
            self.sigma = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            b, c, h, w = x.shape
            a = self.linear_0(self.conv1x1_in(x)).flatten(2).softmax(-1)
            a = a / (1e-9 + a.sum(1, keepdim=True))
            return x + self.sigma * self.conv1x1_attn(self.linear_1(a.view(b, -1, h, w)))

    block = SelfAttention if attention == "self" else ExternalAttention

    class GenBlock(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.bn1, self.bn2 = ConditionalNorm(i), ConditionalNorm(o)
            self.conv2d0, self.conv2d1, self.conv2d2 = conv(i, o, 1), conv(i, o, 3), conv(o, o, 3)

        def forward(self, x, y):
            h = self.conv2d1(F.interpolate(F.relu(self.bn1(x, y), inplace=True), scale_factor=2))
            h = self.conv2d2(F.relu(self.bn2(h, y), inplace=True))
            return h + self.conv2d0(F.interpolate(x, scale_factor=2))

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            c = 4 * width
            self.linear0 = sn(nn.Linear(z_dim, 16 * c))
            self.blocks = nn.ModuleList(nn.ModuleList([b]) for b in (GenBlock(c, c), GenBlock(c, c), block(c),
                                                                     GenBlock(c, c)))
            self.bn4, self.conv2d5 = nn.BatchNorm2d(c, eps=1e-4), conv(c, 3, 3)

        def forward(self, z, y):
            h = self.linear0(z).view(len(z), -1, 4, 4)
            for b, in self.blocks:
                h = b(h, y) if isinstance(b, GenBlock) else b(h)
            return torch.tanh(self.conv2d5(F.relu(self.bn4(h), inplace=True)))

    class DiscBlock(nn.Module):
        def __init__(self, i, o, down, first=False):
            super().__init__()
            self.down, self.first = down, first
            if down or i != o:
                self.conv2d0 = conv(i, o, 1)
            self.conv2d1, self.conv2d2 = conv(i, o, 3), conv(o, o, 3)

        def forward(self, x):
            if not self.first:
                x = F.relu(x)
            h = self.conv2d2(F.relu(self.conv2d1(x), inplace=True))
            if self.down:
                h = F.avg_pool2d(h, 2)
                x = self.conv2d0(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.conv2d0(x), 2)
            return h + x

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            c = 2 * width
            blocks = DiscBlock(3, c, True, True), block(c), DiscBlock(c, c, True), DiscBlock(c, c, False), \
                DiscBlock(c, c, False)
            self.blocks = nn.ModuleList(nn.ModuleList([b]) for b in blocks)
            self.linear1, self.embedding = sn(nn.Linear(c, 1)), sn(nn.Embedding(num_classes, c))

        def forward(self, x, label):
            for b, in self.blocks:
                x = b(x)
            h = F.relu(x, inplace=True).sum((2, 3))
            return self.linear1(h)[:, 0] + (self.embedding(label) * h).sum(1)

    return Generator(), Discriminator()


def data(batch: int, z_dim: int = 128) -> dict:
    rng = np.random.default_rng(0)
    return {"image": rng.uniform(-1, 1, (batch, 3, 32, 32)).astype(np.float32),
            "label": rng.integers(0, 10, batch).astype(np.int32),
            "z": rng.standard_normal((batch, z_dim)).astype(np.float32),
            "fake_label": rng.integers(0, 10, batch).astype(np.int32)}


# -- the sides: functions that make one step and return its loss -------------------------------------------------------

def jea_phases(model, batch: dict) -> list:
    """The task's phases, on random numbers that stand in the batch."""
    from jea._jittor import jt
    from jea.tasks.generation import Generation
    task = Generation.__new__(Generation)
    task.options, task.model, task.generator = Generation.Train(batch_size=len(batch["image"])), model, model.generator
    z, labels = jt.array(batch["z"]), jt.array(batch["fake_label"])
    task.new_pictures = lambda count: (model.generator(z, labels), labels)
    model.train()
    return task.phases(1)


def jea_steps(model, batch: dict) -> dict:
    from jea._jittor import jt
    steps = {}
    for phase in jea_phases(model, batch):
        def run(phase=phase):
            losses = phase.losses(batch)
            values = {name: value.item() for name, value in losses.items()}
            phase.optimizer.backward(losses["loss"])
            phase.optimizer.step()
            jt.sync_all(True)
            return values["loss"]
        steps[phase.name] = run
    return steps


def torch_steps(model, batch: dict, attention: str, width: int, channels_last: bool, device: str = "cpu") -> dict:
    """The steps in PyTorch; without `model` from weights of its own."""
    import torch
    from torch.nn import functional as F
    torch.set_num_threads(threads())
    pair = torch_pair(attention, width)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network, ours in zip(pair, (model.generator, model.discriminator) if model else ()):
        state = {name: torch.from_numpy(value.numpy().copy()) for name, value in ours.state_dict().items()}
        missing, unexpected = network.load_state_dict(state, strict=False)
        if unexpected or any("num_batches_tracked" not in name for name in missing):
            raise SystemExit(f"the two networks differ: {missing}, {unexpected}")
    for network in pair:
        network.train().to(device, memory_format=layout)
    g, d = pair
    optimizers = [torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), eps=1e-6) for network in (d, g)]
    image = torch.from_numpy(batch["image"]).to(device, memory_format=layout)
    label, fake_label = (torch.from_numpy(batch[name]).long().to(device) for name in ("label", "fake_label"))
    z, one_hot = torch.from_numpy(batch["z"]).to(device), F.one_hot(fake_label, 10).float()

    def discriminator():
        with torch.no_grad():
            fake = g(z, one_hot)
        scores = d(torch.cat([image, fake]), torch.cat([label, fake_label]))
        loss = F.relu(1 - scores[:len(image)]).mean() + F.relu(1 + scores[len(image):]).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        return loss.item()

    def generator():
        d.requires_grad_(False)
        loss = -d(g(z, one_hot), fake_label).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        d.requires_grad_(True)
        return loss.item()
    return {"discriminator": discriminator, "generator": generator}


def bench(batch: int, attention: str, width: int, runs: int) -> dict:
    import jea
    from jea._jittor import jt
    jt.set_global_seed(0)
    model, content = jea.create_model("ea_sagan_cifar10", attention=attention, width=width), data(batch)
    sides = {"torch contiguous": torch_steps(model, content, attention, width, False),
             "torch channels_last": torch_steps(model, content, attention, width, True),
             "jea": jea_steps(model, content)}
    rows = {}
    for phase in ("discriminator", "generator"):
        losses = {side: steps[phase]() for side, steps in sides.items()}
        wanted = losses["torch contiguous"]
        errors = {side: abs(loss - wanted) / max(abs(wanted), 1e-2) for side, loss in losses.items()}
        if not max(errors.values()) <= TOLERANCE:
            raise SystemExit(f"{phase}: losses differ: {losses}; nothing is timed")
        for steps in sides.values():
            steps[phase]()
        seconds = interleaved({side: steps[phase] for side, steps in sides.items()}, runs)
        medians = {side: value["median"] for side, value in seconds.items()}
        best = min(value for side, value in medians.items() if side.startswith("torch"))
        rows[phase] = {**medians, "speed of jea, PyTorch's best = 1": best / medians["jea"], "error": errors["jea"]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--attention", choices=("external", "self"), default="external")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side (5)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    rows = bench(arguments.batch, arguments.attention, arguments.width, arguments.runs)
    print("\n".join(f"{key}: {value}" for key, value in machine().items()))
    print(f"batch {arguments.batch}, {arguments.attention} attention, width {arguments.width}; medians of "
          f"{arguments.runs}, seconds")
    for phase, row in rows.items():
        print(f"{phase:14}" + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
