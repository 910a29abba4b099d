"""What needs CUDA kernels, part by part: every operator, optimizer, demo's training step and model. See compile.py."""
from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def flattened(outputs) -> list:
    """All Vars in nested lists and tuples."""
    if isinstance(outputs, (tuple, list)):
        return [var for output in outputs for var in flattened(output)]
    return [outputs] if outputs is not None else []


# Configs without a step here: pictures that are not there (those of digits come with scikit-learn; the network is that
# of tiny_shapes), and detectors, whose step follows indices that a kernel found.
NOT_HERE = ("imagenet", "digits", "instance_segmentation", "detection")


def parts() -> dict:
    """name -> function that needs the kernels: operators, optimizers, a training step of each demo's config, models."""
    from jea.models import MODELS
    found = {f"op {name}": function for name, function in operators().items()}
    found.update({f"optimizer {name}": (lambda name=name: optimize(name)) for name in ("SGD", "Adam", "AdamW")})
    found.update({f"optimizer {name} of Jittor's": (lambda name=name: optimize(name, own=True))
                  for name in ("SGD", "Adam", "AdamW")})
    found.update({f"config {path.stem}": (lambda path=path: step_of_config(path))
                  for path in sorted((ROOT / "configs").glob("*_tiny_*.yaml"))
                  if not any(word in path.stem for word in NOT_HERE)})
    for name in DENSE:
        found[f"model {name} dense inference"] = (lambda name=name: dense(name, training=False))
        found[f"model {name} dense training step"] = (lambda name=name: dense(name, training=True))
    # Each family's small one first. Detectors decide on the host what runs next, by values that no stub computes: of
    # them what runs between, on boxes that stand here.
    for name in sorted((name for name in MODELS if MODELS[name] != "detection"), key=lambda name: "tiny" not in name):
        found[f"model {name} inference"] = (lambda name=name: infer(name))
        found[f"model {name} training step"] = (lambda name=name: train(name))
        for dtype in ("float16", "bfloat16") if name in HALF else ():
            found[f"model {name} {dtype} training step"] = (lambda name=name, dtype=dtype: train(name, dtype))
    return found


def _gradient(output, *inputs):
    from jea._jittor import jt
    loss = sum((v.float32() * v.float32()).sum() for v in flattened(output))
    gradients = jt.grad(loss, list(inputs))
    wrong = [(tuple(g.shape), tuple(v.shape)) for g, v in zip(gradients, inputs) if g.shape != v.shape]
    assert not wrong, f"error: shapes of gradients and of their inputs differ: {wrong}"
    return gradients


def operators() -> dict:
    """Every public operator that has a path on CUDA; a new one is missing here until it is added."""
    from jea import ops
    from jea._jittor import jt

    def on_cpu_only():
        assert ops.conv_nhwc_unavailable()

    def norm(dtype, layout, impl="fused"):
        x = of_type(dtype, *((2, 64, 5, 64) if layout == "bnhs" else (2, 64, 63)))
        return lambda: _gradient(ops.double_norm(x, layout=layout, impl=impl), x)

    def batch(statistics, residual, relu):
        x, r, w, b = jt.randn(2, 3, 5, 7), jt.randn(2, 3, 5, 7), jt.ones((3,)), jt.zeros((3,))
        return lambda: _gradient(ops.batch_norm(x, w, b, statistics=(b, w) if statistics else None,
                                                residual=r if residual else None, relu=relu, impl="fused")[0], x, w,
                                                b, r)

    def batch_nhwc(dtype, training, residual, relu):
        x, r, w, b = of_type(dtype, 2, 5, 7, 8), of_type(dtype, 2, 5, 7, 8), jt.ones((8,)), jt.zeros((8,))
        return lambda: _gradient(ops.batch_norm(x, w, b, statistics=None if training else (b, w), layout="nhwc",
                                                relu=relu, residual=r if residual else None, impl="fused")[0], x, w,
                                                b, r)

    def of_type(dtype, *shape):
        return jt.randn(*shape) if dtype == "float32" else jt.randn(*shape).cast(dtype)

    def linear(dtype, bias, gelu, summand):
        x, w, b, s = (of_type(dtype, *shape) for shape in ((6, 16), (8, 16), (8,), (6, 8)))
        inputs = [x, w] + [b] * bias + [s] * summand
        return lambda: _gradient(ops.linear(x, w, b if bias else None, gelu=bool(gelu), summand=s if summand else None,
                                            impl="fused"), *inputs)

    def graph_conv(dtype, kernel, epilogue):
        from jea.ops.convolution.cudnn import check, conv2d, plans
        x, w = of_type(dtype, 2, 9, 9, 8), jt.randn(16, 8, kernel, kernel)
        inputs = {"x": x, "weight": w,
                  **({"bias": jt.randn(16), "residual": of_type(dtype, 2, 9, 9, 16)} if epilogue else {})}

        def function():
            before = plans.plan, check.unavailable
            check.unavailable = lambda *_, **__: ""
            outputs = []
            try:
                for fused in (True, False) if epilogue else (True,):  # no plan comes of kernels that do nothing
                    plans.plan = lambda *_, **given: plans.Plan(address=1, forward=1, backward=1,
                                                                refused="" if fused or not any(
                        v for k, v in given.items() if k in ("bias", "residual", "relu")) else "not fused")
                    outputs += _gradient(conv2d(**inputs, relu=bool(epilogue), padding=kernel // 2, impl="fused"),
                                         *inputs.values())
            finally:
                plans.plan, check.unavailable = before
            return outputs
        return function

    def graph_plan():
        from jea.ops.convolution.cudnn import plans
        return plans.plan("forward", "float32", dict.fromkeys(plans.SIZES, 1)) and None

    def cross_entropy(dtype, smoothing):
        logits = of_type(dtype, 2, 5, 9)
        return lambda: _gradient(ops.cross_entropy(logits, labels, label_smoothing=smoothing, impl="fused"), logits)

    def soft_split(dtype, channels_last):
        x = of_type(dtype, 2, 3, 8, 8)
        return lambda: _gradient(ops.soft_split(x, kernel_size=3, stride=2, padding=1, impl="fused",
                                                channels_last=bool(channels_last)), x)

    def resize_nhwc(dtype, channels):
        x = of_type(dtype, 2, 5, 7, channels)
        return lambda: _gradient(ops.resize_bilinear(x, (11, 5), layout="nhwc", impl="fused"), x)

    def max_pool(dtype):
        x = of_type(dtype, 2, 5, 7, 8)
        return lambda: _gradient(ops.max_pool_nhwc(x, impl="fused"), x)

    def transpose(dtype, *axes):
        x = of_type(dtype, *range(2, 2 + len(axes)))
        return lambda: _gradient(ops.transpose(x, axes, impl="fused"), x)

    def points(function):
        xyz, features = jt.rand(2, 40, 3), jt.randn(2, 6, 40)
        return lambda: function(xyz, features)

    def updates(rule):
        """Vars of one and of several axes."""
        control, lists = jt.ones(2), [[jt.randn(3), jt.randn(2, 3), jt.randn(2, 3, 1, 1)] for _ in range(4)]
        options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "steps": 1} if rule == "adam_update" else {"lr": 0.1}
        if rule == "moved":
            return lambda: [ops.moved(*lists[:2], 0.1, impl="fused", control=control),
                            ops.moved(*lists[:2], 0.1, [1.0, 2.0, 3.0], impl="fused")]
        update = getattr(ops, rule)
        return lambda: [update(*lists[:3 if rule == "sgd_update" else 4], **options, impl="fused", control=given)
                        for given in (None, control)]

    def decision(rule):
        wide, control = jt.ones(3).float64(), jt.ones(2)
        return lambda: {"all_finite": lambda: [ops.all_finite(wide, impl="fused"),
                                               ops.all_finite(wide, control, impl="fused")],
                        "clipped": lambda: ops.clipped(wide, control, 1.0, impl="fused"),
                        "gathered": lambda: [ops.gathered([jt.ones(1)] * count, impl="fused")
                                             for count in (1, 3)]}[rule]()

    dtypes = ("float32", "float16", "bfloat16")
    x4, labels = jt.randn(2, 3, 8, 8), jt.zeros((2, 9)).int32()
    rows, weight, bias = jt.randn(6, 16), jt.ones((16,)), jt.zeros((16,))
    matrix, sequence = jt.randn(8, 16), jt.randn(2, 5, 16)
    found = {f"double_norm {dtype} {layout}": norm(dtype, layout)
             for layout in ("bsn", "bns", "bnhs") for dtype in dtypes}
    found.update({f"batch_norm {statistics}{residual}{relu}": batch(statistics, residual, relu)
                  for statistics in (0, 1) for residual in (0, 1) for relu in (0, 1)})
    found.update({f"batch_norm nhwc {dtype} {training}{residual}{relu}": batch_nhwc(dtype, training, residual,
                                                                                    bool(relu))
                  for dtype in dtypes for training, residual, relu in ((1, 0, 1), (1, 1, 1), (1, 0, 0), (0, 1, 1))})
    found.update({f"linear {dtype} {bias}{gelu}{summand}": linear(dtype, bias, gelu, summand) for dtype in dtypes
                  for bias, gelu, summand in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1))})
    found.update({f"cross_entropy {dtype} {smoothing}": cross_entropy(dtype, smoothing)
                  for dtype in dtypes for smoothing in (0., 0.1)})
    found.update({f"soft_split {dtype} {last}": soft_split(dtype, last) for dtype in dtypes for last in (0, 1)})
    found.update({f"resize_bilinear nhwc {dtype}": resize_nhwc(dtype, 8) for dtype in dtypes})
    found.update({f"max_pool_nhwc {dtype}": max_pool(dtype) for dtype in dtypes})
    found.update({f"transpose {dtype} {''.join(map(str, axes))}": transpose(dtype, *axes) for dtype in dtypes
                  for axes in ((1, 0), (0, 2, 1), (3, 1, 0, 2))})
    found.update({f"conv2d on cuDNN's graphs {dtype} {kernel}x{kernel} {epilogue}": graph_conv(dtype, kernel, epilogue)
                  for dtype in dtypes for kernel in (1, 3) for epilogue in (0, 1)})
    found.update({rule: updates(rule) for rule in ("sgd_update", "adam_update", "moved")})
    found.update({rule: decision(rule) for rule in ("all_finite", "clipped", "gathered")})
    found.update({
        "plans for cuDNN's graphs": graph_plan,
        "double_norm reference": norm("float32", "bsn", "ref"),
        "layer_norm": lambda: _gradient(ops.layer_norm(rows, weight, bias, impl="fused"), rows, weight, bias),
        "resize_bilinear": lambda: _gradient(ops.resize_bilinear(x4, (11, 5), impl="fused"), x4),
        "external_attention": lambda: _gradient(
            ops.external_attention(sequence, matrix, matrix, return_attention=True), sequence, matrix),
        "farthest_point_sample": points(lambda xyz, f: ops.farthest_point_sample(xyz, 8, impl="fused")),
        "knn": points(lambda xyz, f: ops.knn(xyz[:, :5], xyz, 4, impl="fused")),
        "gather_points": points(lambda xyz, f: _gradient(
            ops.gather_points(f, jt.zeros((2, 4, 3)).int32(), impl="fused"), f)),
        "max_last": points(lambda xyz, f: _gradient(ops.max_last(f, impl="fused"), f)),
        "three_interpolate": points(lambda xyz, f: _gradient(
            ops.three_interpolate(xyz[:, :20], xyz, f[:, :, :20], impl="fused"), f)),
    })
    without_cuda = {name: on_cpu_only for name in ("conv2d_nhwc", "pack_conv", "conv_nhwc_unavailable",
                                                   "batch_norm_blocked", "can_block", "conv2d_blocked", "from_blocked",
                                                   "max_pool_blocked", "to_blocked")}
    known = {name.split()[0] for name in found} | set(without_cuda)

    def complete():
        unknown = set(ops.__all__) - known
        assert not unknown, f"tests/gpu/parts.py does not know {', '.join(sorted(unknown))}"
    return {**found, "all are here": complete}


def optimize(name: str, own: bool = False) -> list:
    from jea._jittor import jt, nn
    from jea.training import optimizers
    layer = nn.Linear(5, 3)
    options = {"momentum": 0.9, "weight_decay": 1e-4} if name == "SGD" else {"weight_decay": 0.05}
    optimizer = getattr(jt.optim if own else optimizers, name)(layer.parameters(), lr=0.1, **options)
    optimizer.step((layer(jt.randn(2, 5)) ** 2).sum())
    return list(layer.parameters())


def step_of_config(path: Path) -> list:
    """Two training steps with the task's own losses, on the demo's data: the second one's copies are counted."""
    import copies

    from jea import config
    from jea.data import Batch
    from jea.tasks import create_task
    from jea.training import reading
    from jea.training.phase import begin_step
    from jea.training.reading import Gate, Told
    task = create_task(config.load(path, ["train.batch_size=4", "train.num_workers=0"]))
    phases = task.phases(10)
    for phase in phases:
        if phase.average:
            phase.average.reset()
    task.begin_training()
    Told._check = lambda *_: None  # nothing was computed
    reading._wrong = lambda: ""
    gate, batch = Gate(), Batch(next(iter(task.batches(0, 0))))
    read = begin_step(phases, batch, 0, task.options, gate)
    with copies.counted() as found:
        read, before = begin_step(phases, batch, 0, task.options, gate), read
        before()
    read()
    copies.check(found, batch, phases, bool(task.options.grad_clip))
    return [var for module in task.modules.values() for var in module.parameters()]


def inputs(name: str):
    """What the model (of a pair the generator) is called with: small, and of a size that it takes."""
    from jea._jittor import jt
    from jea.models import MODELS
    family = MODELS[name]
    if family in ("eanet", "eanet_jseg"):
        return (jt.randn(2, 3, 65, 65),)
    if family == "eamlp":
        return (jt.randn(2, 3, 224, 224),)
    if family == "eagan":
        from jea.models import model_arguments
        return (jt.randn(2, model_arguments(name)["z_dim"].default), jt.array([0, 1]).int32())
    if family == "inception":
        return (jt.randn(1, 3, 299, 299),)
    if family == "ea_point":
        points = jt.rand(2, 3, 1024)
        return (points, jt.zeros((2, 16))) if "partseg" in name else (points,)
    raise ValueError(f"tests/gpu/parts.py has no inputs for the family {family}")


def create(name: str, **kwargs):
    from jea.models import create_model
    return create_model(name, **kwargs)


def infer(name: str) -> list:
    import jea
    from jea._jittor import jt
    from jea.models import MODELS
    model = create(name)
    model.eval()
    with jt.no_grad():
        fused = [jea.fuse(model)(*inputs(name))] if MODELS[name].startswith("eanet") else []
        return flattened([outputs_of(model, name), fused])


DENSE = ("ea_maskrcnn_tiny", "ea_cascade_maskrcnn_tiny", "ea_retinanet_tiny", "ea_maskrcnn_resnet50_fpn",
         "ea_retinanet_resnet50_fpn")


def dense(name: str, training: bool) -> list:
    """Backbone, pyramid and heads of a detector, on two boxes."""
    import numpy as np

    from jea._jittor import jt
    from jea.nn.formats import plain
    from jea.training.optimizers import SGD
    model, images = create(name), jt.randn(2, 3, 96, 96)
    if not training:
        model.eval()

    def outputs():
        if "retinanet" in name:
            return list(model.dense(images)[:2])
        levels = model.backbone(images)
        features, heads, found = [plain(level) for level in levels], model.roi_heads, [*model.rpn(levels)]
        boxes, pictures = np.array([[0, 0, 40, 40], [8, 8, 60, 50]], np.float32), np.array([0, 1])
        for stage in range(len(heads.stages)):
            found += [*heads.predict(features, boxes, pictures, stage), heads.mask_logits(features, boxes, pictures,
                                                                                           stage)]
        return found
    if not training:
        with jt.no_grad():
            return outputs()
    trained = [var for var in model.parameters() if not var.is_stop_grad()]
    SGD(trained, lr=0.1, momentum=0.9).step(sum((v * v).mean() for v in outputs()))
    return trained


HALF = ("eanet_tiny", "eanet_jseg_resnet50", "eamlp_tiny", "ea_pct_tiny_cls", "ea_pct_tiny_partseg", "ea_sagan_tiny")


def train(name: str, dtype: str = "float32") -> list:
    from jea.models import MODELS
    from jea.nn import precision
    from jea.training.optimizers import SGD
    model = create(name)
    trained = [model.generator, model.discriminator] if MODELS[name] == "eagan" else [model]
    for part in trained:
        with precision.autocast(dtype):
            outputs = flattened(outputs_of(model, name))
        SGD(part.parameters(), lr=0.1, momentum=0.9).step(sum((v * v).mean() for v in outputs))
    return [var for part in trained for var in part.parameters()]


def outputs_of(model, name: str):
    """What the model computes; of a pair the pictures and their scores."""
    from jea.models import MODELS
    arguments = inputs(name)
    if MODELS[name] != "eagan":
        return model(*arguments)
    pictures = model.generator(*arguments)
    return [pictures, model.discriminator(pictures, arguments[1])]
