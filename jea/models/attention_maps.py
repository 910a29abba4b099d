"""`attention_maps(model, x)`: what the external attention of a network looks at."""
from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass

import numpy as np

from jea._jittor import jt
from jea.errors import ConfigError
from jea.models.network import Network
from jea.nn.external_attention import Attends
from jea.nn.fold import Fused
from jea.nn.formats import Activation
from jea.nn.mode import evaluating


@dataclass(frozen=True)
class AttentionMap:
    """The map of one external attention, after the double normalisation.

    values: (B, heads, S, N) float32: the share of memory s in the attention of position n; over the memories they sum
        to 1.
    grid: (h, w) where the positions lie on a grid: the last h w of them, row by row. One more stands before these in
        the blocks of an EAMLP: the class token. None elsewhere.
    points: (B, N, 3) float32, where the positions are points of a cloud; None elsewhere.
    """

    values: np.ndarray
    grid: tuple | None = None
    points: np.ndarray | None = None

    @property
    def pictures(self) -> np.ndarray:
        """The map over its grid: (B, heads, S, h, w), without the class token."""
        if self.grid is None:
            raise ValueError("these positions lie on no grid: take `values`")
        h, w = self.grid
        return self.values[..., self.values.shape[3] - h * w:].reshape(*self.values.shape[:3], h, w)


def attention_maps(model, *inputs) -> dict:
    """The maps of all layers of external attention, in the order in which they run: {name of the layer: AttentionMap}.

        maps = jea.attention_maps(model, images)
        maps["linu"].values                        # EANet: (B, 1, 64, N), grid (H/8, W/8)
        maps["blocks.0.attn"].pictures[0, 3, 17]   # EAMLP: block 0, head 3, memory 17 over the picture
        maps["sa1"].points                         # EA-PCT: where the columns of sa1's map lie

    The model runs once, in evaluation mode without gradients, and is left as it was. A fused one (jea.fuse) has the
    same maps to about 1e-5.

    Args:
        model: any network, or part of one, with layers of jea's external attention: one of jea.create_model, a
            detector or its `backbone`, `model.generator`, `model.discriminator`, or your own.
        inputs: what it is called with; arrays of floats are taken too.
    Raises:
        ConfigError: no layer of the model has external attention.
    """
    layers = external_attentions(model)
    if not layers:
        raise ConfigError(f"{type(_network(model)).__name__} has no external attention to show")
    inputs = [jt.array(np.ascontiguousarray(x, np.float32)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
              for x in inputs]
    found: list = []
    with evaluating(model), contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_recorded(layer, name, found))
        model(*inputs)
    with jt.no_grad():
        return {name: AttentionMap(attention.float32().numpy(), **_places(model, grid, attention.shape[3], inputs))
                for name, attention, grid in _numbered(found)}


def external_attentions(model) -> dict:
    """name -> layer of all external attentions in a model; {} where it has none."""
    layers = {id(layer): (name, layer) for name, layer in reversed(list(_network(model).named_modules()))
              if isinstance(layer, Attends) and layer.map_axes}
    return dict(reversed(list(layers.values())))


@contextlib.contextmanager
def _recorded(layer, name: str, found: list):
    """In the block each call of the layer appends (name, map (B, heads, S, N), grid of its input or None)."""
    run, before = layer.execute, vars(layer).get("execute")
    signature = inspect.signature(type(layer).execute)

    def execute(*args, **options):
        call = signature.bind(layer, *args, **options)
        wanted = call.arguments.get("return_attention", False)
        call.arguments["return_attention"] = True
        y, attention = run(*call.args[1:], **call.kwargs)
        attention = attention.unsqueeze(1) if layer.map_axes == "bsn" else attention.transpose(0, 1, 3, 2)
        found.append((name, attention, _grid(call.args[1])))
        return (y, attention) if wanted else y
    layer.execute = execute
    try:
        yield
    finally:
        if before is None:
            del layer.execute
        else:
            layer.execute = before


def _grid(x) -> tuple | None:
    """Height and width of what enters a layer, where it has some."""
    if isinstance(x, Activation):
        return tuple(map(int, x.size))
    return tuple(map(int, x.shape[2:])) if x.ndim == 4 else None


def _places(model, grid, positions: int, inputs) -> dict:
    network = _network(model)
    if grid is not None:
        return {"grid": grid}
    places = network.attention_places(positions, *inputs) if isinstance(network, Network) else {}
    return {key: value.numpy() if key == "points" else value for key, value in places.items()}


def _numbered(found: list):
    """A layer that ran several times is named "name", "name (2)", ..."""
    seen: dict = {}
    for name, *rest in found:
        seen[name] = seen.get(name, 0) + 1
        yield (f"{name} ({seen[name]})" if seen[name] > 1 else name, *rest)


def _network(model):
    return model.network if isinstance(model, Fused) else model
