"""The networks that bench.py times: the same weights and inputs for jea and PyTorch, on one device."""
from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


class Case:
    """jea(folder) and torch(folder, compiled) give (run, {label: step}): run(want) computes the output and returns it
    as an array if it is wanted; a step trains once. jea's side leaves its weights in the folder, PyTorch's takes them
    from there."""

    name = ""

    def __init__(self, device: str, mode: str, *, small: bool):
        self.device, self.mode, self.small = device, mode, small
        self.half = mode if mode in ("bfloat16", "float16") else None

    # what a case defines
    def jea_model(self):
        raise NotImplementedError

    def torch_model(self):
        raise NotImplementedError

    def inputs(self) -> tuple:
        """(inputs of inference, inputs of training, labels), arrays."""
        raise NotImplementedError

    def jea_loss(self, outputs, labels):
        from jea._jittor import nn
        return nn.cross_entropy_loss(outputs, labels)

    def torch_loss(self, outputs, labels):
        import torch
        return torch.nn.functional.cross_entropy(outputs.float(), labels)

    def jea(self, folder: Path):
        import jea
        from jea._jittor import jt
        from jea.nn import precision
        from jea.nn.fold import Fused
        path = folder / f"{self.name}.npz"
        model = self.jea_model()
        if path.exists():
            state = dict(np.load(path))
            model.load_state_dict({key: jt.array(value) for key, value in state.items()})
        else:
            np.savez(path, **{key: var.numpy() for key, var in model.state_dict().items()})
        x, small, labels = (jt.array(value) for value in self.inputs())
        model.eval()
        fused = Fused(model, self.half) if self.half else jea.fuse(model)

        def autocast():
            return precision.autocast(self.half) if self.half else contextlib.nullcontext()

        def run(want):
            with jt.no_grad(), autocast():
                y = fused(x)
                return y.float32().numpy() if want else y.sync()
        return run, {"training": self.jea_step(model, small, labels)}

    def jea_step(self, model, x, labels):
        from jea.data import Batch
        from jea.training.optimizers import SGD as Optimizer
        from jea.training.phase import Phase
        phases = []
        step = step_of(phases, Batch(x=x), self.half or "float32")

        def first_or_later():
            if not phases:
                model.train()
                parameters = [p for p in model.parameters() if not p.is_stop_grad()]
                phases.append(Phase(name=self.name, optimizer=Optimizer(parameters, **SGD),
                                    losses=lambda batch: {"loss": self.jea_loss(model(x).float32(), labels)}))
            step()
        return first_or_later

    def torch(self, folder: Path, compiled: bool):
        import torch
        network, path = self.torch_model(), folder / f"{self.name}.npz"
        if path.exists():
            with np.load(path) as stored:
                self.load(network, {key: torch.from_numpy(stored[key]) for key in stored.files})
        x, small, labels = (torch.from_numpy(value).to(self.device) for value in self.inputs())
        network = network.to(self.device)
        if x.ndim == 4:
            network, x, small = (value.to(memory_format=torch.channels_last) for value in (network, x, small))
        function = torch.compile(network, dynamic=False) if compiled else network

        def autocast():
            return torch.autocast(self.device, getattr(torch, self.half)) if self.half else contextlib.nullcontext()
        network.eval()

        def run(want):
            network.eval()
            with torch.inference_mode(), autocast():
                y = function(x)
                return y.float().cpu().numpy() if want else y
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], **SGD)

        def step():
            network.train()
            optimizer.zero_grad()
            with autocast():
                loss = self.torch_loss(function(small), labels.long())
            loss.backward()
            optimizer.step()
        return run, {"training": step}

    def load(self, network, state: dict) -> None:
        missing, unexpected = network.load_state_dict(state, strict=False)
        if unexpected or any("num_batches_tracked" not in name for name in missing):
            raise SystemExit(f"the two networks differ: {missing}, {unexpected}")


def step_of(phases: list, batch, precision: str = "float32"):
    """A step as jea.training.loop makes it: its losses are read when the next one has begun."""
    from jea.tasks.options.training import TrainOptions
    from jea.training.phase import begin_step
    from jea.training.reading import Gate
    options, gate, begun = TrainOptions(precision=precision), Gate(), []

    def step():
        begun.append(begin_step(phases, batch, 0, options, gate))
        if len(begun) > 1:
            begun.pop(0)()
    return step


class EANet(Case):
    name = "EANet-R50"

    def jea_model(self):
        import bm_eanet
        model = bm_eanet.jea_eanet()
        bm_eanet.randomise_statistics(model)
        return model

    def torch_model(self):
        import bm_eanet
        return bm_eanet.torch_eanet()

    def inputs(self):
        import bm_eanet
        size = 65 if self.small else 513
        small = bm_eanet.picture(2, size // 2 | 1)
        return bm_eanet.picture(1, size), small, bm_eanet.labels_like(small)

    def jea_loss(self, outputs, labels):
        from jea.tasks.segmentation import pixel_cross_entropy
        return pixel_cross_entropy(outputs, labels)

    def torch_loss(self, outputs, labels):
        import torch
        return torch.nn.functional.cross_entropy(outputs.float(), labels, ignore_index=255, reduction="none").mean()


class EAMLP(Case):
    name = "EAMLP-14"

    def jea_model(self):
        import bm_eamlp
        return bm_eamlp.jea_model("eamlp_14")

    def torch_model(self):
        import bm_eamlp

        from jea.models.eamlp import ENTRY_POINTS
        return bm_eamlp.torch_eamlp(**ENTRY_POINTS["eamlp_14"][1])

    def inputs(self):
        import bm_eamlp
        x = bm_eamlp.pictures(2 if self.small else 64)
        return x, x, np.random.default_rng(1).integers(0, 1000, len(x)).astype(np.int32)


class Points(Case):
    name = "EA-PCT"

    def jea_model(self):
        import bm_points
        return bm_points.jea_model("external")

    def torch_model(self):
        import torch_pct
        return torch_pct.Classifier("external")

    def inputs(self):
        import bm_points
        x = bm_points.clouds(2 if self.small else 32, 1024)
        return x, x, np.random.default_rng(1).integers(0, 40, len(x)).astype(np.int32)

    def load(self, network, state):
        state.update({key.replace("k_conv", "q_conv"): value for key, value in state.items() if "k_conv" in key})
        super().load(network, state)


class SAGAN(Case):
    name = "EA-SAGAN"

    def both(self):
        import bm_gan

        import jea
        from jea._jittor import jt
        jt.set_global_seed(0)
        width = 32 if self.small else 256
        return jea.create_model("ea_sagan_cifar10", width=width), bm_gan.data(4 if self.small else 64), width

    def jea(self, folder):
        import bm_gan
        model, batch, _ = self.both()
        path = folder / f"{self.name}.npz"
        if not path.exists():
            np.savez(path, **{key: var.numpy() for key, var in model.state_dict().items()})
        from jea.data import Batch
        return None, {phase.name: step_of([phase], Batch(batch)) for phase in bm_gan.jea_phases(model, batch)}

    def torch(self, folder, compiled):
        import bm_gan
        width, batch = 32 if self.small else 256, bm_gan.data(4 if self.small else 64)
        return None, bm_gan.torch_steps(None, batch, "external", width, True, device=self.device)


class Attention(Case):
    """External attention (S = 64) over N positions of 512 channels; PyTorch's scaled_dot_product_attention with 8
    heads."""

    name = "attention"
    lengths = (1024, 4096, 16384, 65536)

    def jea(self, folder):
        from jea._jittor import jt
        from jea.ops import external_attention
        memories = [jt.randn(64, 512) * 0.05 for _ in range(2)]
        memories = [m.cast(self.half) if self.half else m for m in memories]
        runs = {}
        for n in (64,) if self.small else self.lengths:
            x = jt.randn(1, n, 512)
            x = x.cast(self.half) if self.half else x
            jt.sync([x, *memories])

            def run(x=x):
                with jt.no_grad():
                    external_attention(x, *memories).sync()
            runs[f"N={n}"] = run
        return runs, {}

    def torch(self, folder, compiled):
        import torch
        dtype, runs = getattr(torch, self.half or "float32"), {}
        for n in (64,) if self.small else self.lengths[:3 if not self.half else 4]:
            q, k, v = (torch.randn(1, 8, n, 64, device=self.device, dtype=dtype) for _ in range(3))
            runs[f"N={n}"] = lambda q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return runs, {}


CASES = {case.name: case for case in (EANet, EAMLP, Points, SAGAN, Attention)}
