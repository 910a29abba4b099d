"""EAMLP-7 and EAMLP-14 at 224 x 224 on the CPU: jea against PyTorch eager with the same weights.

    python tests/bench/bm_eamlp.py                     # inference (plain, fused) at batch 1 and 16, training at 16
    python tests/bench/bm_eamlp.py --models eamlp_7 --runs 5 --skip-training --json result.json

Logits and losses are compared before anything is timed: beyond 2e-5 of the largest there are no numbers. The sides run
in turn (interleaved) and medians are shown.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
from sides import jea_inference, jea_training, torch_inference, torch_training  # noqa: E402

from jea.commands.bench import interleaved, machine, table, threads  # noqa: E402

TOLERANCE = 2e-5
FORMATS = {"error": "{:.1e}", "pictures/s": "{:.1f}", "median": "{:.4f}", "best": "{:.4f}", "s per picture": "{:.5f}"}


# -- PyTorch's side, with jea's parameter names --------------------------------------------------------------------

def torch_eamlp(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float):
    import torch
    from torch import nn
    from torch.nn import functional as F

    def double_norm(x):
        x = x.softmax(-2)
        return x / (1e-9 + x.sum(-1, keepdim=True))

    class Mlp(nn.Module):
        def __init__(self, dim, hidden):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

        def forward(self, x):
            return self.fc2(F.gelu(self.fc1(x)))

    class TokenAttention(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.q_linear, self.linear_0 = nn.Linear(dim, 64), nn.Linear(64, 128, bias=False)
            self.linear_1, self.proj = nn.Linear(128, 64), nn.Linear(64, 64)
            self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

        def forward(self, x):
            q = self.q_linear(x)
            return q + self.proj_drop(self.proj(self.linear_1(self.attn_drop(double_norm(self.linear_0(q))))))

    class Tokens(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(dim), TokenAttention(dim)
            self.norm2, self.mlp = nn.LayerNorm(64), Mlp(64, 64)

        def forward(self, x):
            x = self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class TokensToToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention1, self.attention2 = Tokens(147), Tokens(576)
            self.project = nn.Linear(576, embed_dim)

        def forward(self, x):
            x = self.attention1(F.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
            x = F.unfold(picture_of(x), 3, stride=2, padding=1).transpose(1, 2)
            x = self.attention2(x)
            return self.project(F.unfold(picture_of(x), 3, stride=2, padding=1).transpose(1, 2))

    def picture_of(x):
        b, n, c = x.shape
        side = int(n ** 0.5)
        return x.transpose(1, 2).reshape(b, c, side, side)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            width = embed_dim // num_heads
            self.trans_dims, self.proj = nn.Linear(embed_dim, 4 * embed_dim), nn.Linear(4 * embed_dim, embed_dim)
            self.linear_0, self.linear_1 = nn.Linear(width, 64), nn.Linear(64, width)

        def forward(self, x):
            b, n, _ = x.shape
            x = self.trans_dims(x).view(b, n, 4 * num_heads, -1).permute(0, 2, 1, 3)
            x = self.linear_1(double_norm(self.linear_0(x)))
            return self.proj(x.permute(0, 2, 1, 3).reshape(b, n, -1))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.attn = nn.LayerNorm(embed_dim), Attention()
            self.norm2, self.mlp = nn.LayerNorm(embed_dim), Mlp(embed_dim, int(embed_dim * mlp_ratio))

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class EAMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens_to_token = TokensToToken()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, 197, embed_dim), requires_grad=False)
            self.blocks = nn.ModuleList(Block() for _ in range(depth))
            self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, 1000)

        def forward(self, x):
            x = self.tokens_to_token(x)
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    torch.set_num_threads(threads())
    return EAMLP()


def jea_model(name: str):
    import jea
    from jea._jittor import jt
    jt.set_global_seed(0)
    model = jea.create_model(name)
    for key, value in model.state_dict().items():  # the initial 0.02 lets the branches vanish beside their skips
        if key.endswith("weight") and value.ndim == 2:
            value.assign(jt.randn(value.shape) * value.shape[1] ** -0.5)
    return model


def torch_model(name: str, model):
    """The same network in PyTorch with the weights of `model`."""
    import torch

    from jea.models.eamlp import ENTRY_POINTS
    network = torch_eamlp(**ENTRY_POINTS[name][1])
    network.load_state_dict({key: torch.from_numpy(value.numpy().copy()) for key, value in model.state_dict().items()})
    return network


_SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.05}


def pictures(batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)


# -- measuring -----------------------------------------------------------------------------------------------------

def rows(seconds: dict, errors: dict, batch: int) -> dict:
    return {side: {**seconds[side], "error": errors[side], "pictures/s": batch / seconds[side]["median"],
                   "ratio to torch": seconds[side]["median"] / seconds["torch"]["median"]} for side in seconds}


def bench_inference(name: str, batch: int, runs: int) -> dict:
    from jea.nn import fuse
    model, x = jea_model(name), pictures(batch)
    network = torch_model(name, model).eval()
    model.eval()
    functions = {"jea": jea_inference(model, x), "jea fused": jea_inference(fuse(model), x),
                 "torch": torch_inference(network, x)}
    logits = {side: function() for side, function in functions.items()}
    errors = {side: float(np.abs(y - logits["torch"]).max() / np.abs(logits["torch"]).max())
              for side, y in logits.items()}
    if not max(errors.values()) <= TOLERANCE:
        raise SystemExit(f"{name}: logits differ by more than {TOLERANCE:.0e}: {errors}; nothing is timed")
    for function in functions.values():
        function()
    return rows(interleaved(functions, runs), errors, batch)


def bench_training(name: str, batch: int, runs: int) -> dict:
    model, x = jea_model(name), pictures(batch)
    labels = np.random.default_rng(1).integers(0, 1000, batch).astype(np.int32)
    network = torch_model(name, model).train()
    without_dropout(model, network, True)
    functions = {"jea": jea_training(model, x, labels, **_SGD), "torch": torch_training(network, x, labels, **_SGD)}
    losses = {side: [function() for _ in range(3)] for side, function in functions.items()}
    errors = {side: float(np.abs(np.array(values) / losses["torch"] - 1).max()) for side, values in losses.items()}
    if not max(errors.values()) <= 1e-4:
        raise SystemExit(f"{name}: losses of three steps differ: {losses}; nothing is timed")
    without_dropout(model, network, False)
    for function in functions.values():
        function()
    return rows(interleaved(functions, runs), errors, batch)


def bench_input(batch: int, runs: int, num_workers: int = 2) -> dict:
    """The recipe's training pictures from JPEGs of ImageNet's usual size, prepared by worker processes, at 224
    pixels."""
    from PIL import Image

    from jea.data import Loader
    from jea.data.classification.folder import ImageFolder
    from jea.data.segmentation.shapes import draw_scene
    from jea.data.views.augment import TrainPicture, TrainView
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number in range(8 * batch):
            place = Path(folder, "train", f"class{number % 2}")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_scene(rng)[0]).resize((500, 375)).save(place / f"{number}.JPEG", quality=90)
        dataset = TrainView(ImageFolder(root=folder), TrainPicture(size=224, rand_augment=9.0, erase=0.25))
        with Loader(dataset, batch_size=batch, num_workers=num_workers) as loader:
            seconds = []
            for epoch in range(runs + 1):  # the first starts the workers
                start = time.perf_counter()
                count = sum(len(content["image"]) for content in loader.epoch(epoch))
                seconds.append((time.perf_counter() - start) / count)
    median = float(np.median(seconds[1:]))
    return {f"{num_workers} workers": {"s per picture": median, "pictures/s": 1 / median}}


def without_dropout(model, network, off: bool) -> None:
    """The tokens' dropout of 0.1, which upstream has always on; two generators would draw different masks."""
    for stage in (model.tokens_to_token.attention1, model.tokens_to_token.attention2,
                  network.tokens_to_token.attention1, network.tokens_to_token.attention2):
        stage.attn.attn_drop.p = stage.attn.proj_drop.p = 0.0 if off else 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["eamlp_7", "eamlp_14"], help="eamlp_7 eamlp_14")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="batch sizes of inference (1 16)")
    parser.add_argument("--training-batch", type=int, default=16, help="batch size of the training step (16)")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each side (9)")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--json", help="write the results here")
    arguments = parser.parse_args()
    result = {"machine": machine()}
    print(json.dumps(result["machine"]))
    for name in arguments.models:
        for batch in arguments.batches:
            result[f"{name}, inference, {batch} x 224 x 224"] = bench_inference(name, batch, arguments.runs)
        if not arguments.skip_training:
            batch = arguments.training_batch
            result[f"{name}, training step, {batch} x 224 x 224"] = bench_training(name, batch, arguments.runs)
    result["input pipeline alone, 500 x 375 JPEG -> 224 x 224"] = bench_input(arguments.training_batch, arguments.runs)
    for title, sides in result.items():
        if title != "machine":
            print(f"\n{title}\n{table(sides, FORMATS)}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
