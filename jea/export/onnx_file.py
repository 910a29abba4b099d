"""export_onnx: a model as an ONNX file, compared with the model before it is written."""
from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np

from jea import __version__
from jea._jittor import jt
from jea.errors import ConfigError, SetupError, TrainingError
from jea.export.graph import OPSET, Graph, onnx_package
from jea.files import write_bytes
from jea.nn.mode import evaluating

TOLERANCE = 2e-5  # of the largest output
_FAMILIES = {"EANet": "segmentation", "JSegEANet": "segmentation", "EAMLP": "classification",
             "T2TViT": "classification", "PCTClassifier": "points", "PCTSimpleClassifier": "points",
             "PCTPartSegmenter": "points", "Generator": "generation"}


class Exported(NamedTuple):
    """What was written. error: the largest difference to the model's own output, relative to its largest; None where
    ONNX Runtime is not installed, so that nothing was compared."""
    path: str
    inputs: dict
    outputs: dict
    nodes: int
    error: float | None

    def __str__(self) -> str:
        def listed(values):
            return ", ".join(f"{name} {tuple(shape)}" for name, shape in values.items())
        compared = "not compared: pip install onnxruntime" if self.error is None else \
            f"largest difference to the model {self.error:.1e} of the largest output"
        return (f"{self.path}: {self.nodes} nodes, opset {OPSET}; {listed(self.inputs)} -> {listed(self.outputs)}; "
                f"{compared}")


def export_onnx(model, path, *, size=None, dynamic: bool = False) -> Exported:
    """Write a model as an ONNX file of standard operators (opset 17), with BatchNorm and spectral norms folded.

    The batch is always free. What the file computes is compared with the model's own output where ONNX Runtime is
    installed, before anything is written.

    Args:
        model: EANet or JSeg's, EAMLP or T2T-ViT, PCT or EA-PCT, or a GAN (of which the generator is written).
        path: the file.
        size: (H, W) of the pictures, or (N,) points; default 513 x 513, 1024.
        dynamic: leave height and width, or the number of points, free.
    Raises:
        ConfigError: a model or a size that cannot be exported.
        SetupError: the package onnx is missing.
        TrainingError: the file would not compute what the model does; nothing is written.
    """
    onnx = onnx_package()
    model = getattr(model, "generator", model)
    family = next((_FAMILIES[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in _FAMILIES), None)
    if family is None:
        raise ConfigError(f"export: there is no ONNX form of {type(model).__name__}; there is one of "
                          f"{', '.join(_FAMILIES)}")
    module = importlib.import_module(f"jea.export.{family}")
    shapes = module.inputs(model, size)
    if size is not None and (min(size) < 1 or len(size) != {"segmentation": 2, "points": 1}.get(family, -1)):
        raise ConfigError(f"export: size is {list(size)}; " + {
            "segmentation": "expected height and width", "points": "expected the number of points"}.get(
                family, f"a {type(model).__name__} has a size of its own; leave it out"))
    with evaluating(model), jt.no_grad():
        graph = Graph()
        outputs = module.build(graph, model, *shapes)
        example = _example(shapes)
        wanted = {name: value.numpy() for name, value in zip(outputs, [model(*map(jt.array, example.values()))])}
    free = ("height", "width") if family == "segmentation" else ("points",)
    declared = {name: (kind, _free(shape, free if name in ("image", "points") else ()) if dynamic else shape)
                for name, (kind, shape) in shapes.items()}
    made = {name: ("batch", value.shape[1], *[None if dynamic else side for side in value.shape[2:]])
            for name, value in wanted.items()}
    proto = _proto(onnx, graph, declared, outputs, made)
    data = proto.SerializeToString()
    error = _difference(data, example, wanted)
    if error is not None and not error <= TOLERANCE:
        raise TrainingError(f"export: what the file computes differs from the model by {error:.1e} of the largest "
                            f"output; allowed is {TOLERANCE:.0e}. Nothing was written")
    write_bytes(path, data)
    return Exported(str(path), {name: shape for name, (_, shape) in declared.items()},
                    made, len(proto.graph.node), error)


def _free(shape, names) -> tuple:
    return (*shape[:len(shape) - len(names)], *names) if names else shape


def _example(shapes: dict) -> dict:
    """Inputs for the comparison: two samples, the same every time."""
    rng, example = np.random.Generator(np.random.PCG64(0)), {}
    for name, (kind, shape) in shapes.items():
        shape = (2, *shape[1:])
        if name == "category":
            example[name] = np.eye(shape[1], dtype=np.float32)[:2]
        else:
            example[name] = np.arange(2) if kind == "int64" else rng.standard_normal(shape, np.float32)
    return example


def _proto(onnx, graph: Graph, declared: dict, outputs: dict, shapes: dict):
    helper, types = onnx.helper, onnx.TensorProto
    renamed = {value: name for name, value in outputs.items()}
    for node in graph.nodes:
        for k, value in enumerate(node.output):
            node.output[k] = renamed.get(value, value)
        node.input[:] = [renamed.get(value, value) for value in node.input]
    kinds = {"float32": types.FLOAT, "int64": types.INT64}
    made = helper.make_graph(
        graph.nodes, "jea",
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in declared.items()],
        [helper.make_tensor_value_info(name, types.FLOAT, shapes[name]) for name in outputs], graph.initializers())
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="jea",
                              producer_version=__version__)
    proto.ir_version = 8  # what opset 17 came with: older runtimes read it
    onnx.checker.check_model(proto)
    return onnx.shape_inference.infer_shapes(proto)


def _difference(data: bytes, example: dict, wanted: dict) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = session.run(list(wanted), example)
    except Exception as error:
        raise SetupError(f"export: ONNX Runtime does not run the file ({error})") from error
    return max(float(np.abs(got - value).max() / max(np.abs(value).max(), 1e-30))
               for got, value in zip(found, wanted.values()))
