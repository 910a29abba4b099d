"""EA-PCT: point clouds with external attention (paper, section 4.6), in the Point Cloud Transformer (PCT) as host.

Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, arXiv 2105.02358.
PCT: Point Cloud Transformer, arXiv 2012.09688. The paper says that PCT's attention layers are replaced and publishes no
code: how exactly is our choice, written down in jea.nn.points.OffsetAttention.

Inside, features are matrices (C, B N) of the whole batch, see jea.nn.points.
"""
from __future__ import annotations

from jea._jittor import jt, nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError, quoted
from jea.models.network import Network
from jea.nn import precision
from jea.nn.fold import Foldable, fold_norms
from jea.nn.norm import BatchNorm1d
from jea.nn.points import LocalAggregation, OffsetAttention, PointConv, join_clouds, normalised, sampled, split_clouds
from jea.ops import knn, max_last, transpose

ATTENTIONS = ("external", "self")
POSITIONS = ("linear", "affine", "none")
_STEM = (("conv1", "bn1"), ("conv2", "bn2"))


class AttentionStack(Foldable):
    """The attention part of the sampled classifier (PCT's Point_Transformer_Last): (C, B N) -> (layers C, B N).

    With a position term, a linear map of the coordinates is added to the input of each layer, its residual included.
    """

    def __init__(self, channels: int, layers: int, position: str, attention: str, num_memories: int):
        self.conv1, self.bn1 = PointConv(channels, channels, bias=False), BatchNorm1d(channels)
        self.position = position
        if position == "none":
            self.conv2, self.bn2 = PointConv(channels, channels, bias=False), BatchNorm1d(channels)
        else:
            self.conv_pos = PointConv(3, channels, bias=position == "affine")
        _add_layers(self, layers, channels, attention, num_memories)

    def execute(self, x, xyz, batch: int):
        x = normalised(self.bn1, self.conv1(x))
        if self.position == "none":
            return _attend(self, normalised(self.bn2, self.conv2(x)), batch)
        return _attend(self, x, batch, self.conv_pos(xyz))

    def fold(self):
        """See jea.nn.fold.folded."""
        fold_norms(vars(self), *_STEM[:2 if self.position == "none" else 1])
        return self


class _PointNetwork(Network):
    samples: tuple = ()  # points of the sampling stages

    def attention_places(self, positions: int, points, *category) -> dict:
        """The points, or those of the last sampling stage."""
        xyz = transpose(points, (0, 2, 1))
        for samples in self.samples:
            _, xyz = sampled(xyz, samples)
        return {"points": xyz}


class _Classifier(_PointNetwork):
    solves = "point_classification"

    def fold(self):
        """See jea.nn.fold.folded."""
        fold_norms(vars(self), *_STEM, ("linear1", "bn6"), ("linear2", "bn7"))
        fold_norms(self.conv_fuse.layers, ("0", "1"))
        return self


class PCTClassifier(_Classifier):
    """Classification with neighbour embedding: ea_pct_cls (PCT's Point_Transformer2).

        3 -> 64 -> 64 -> farthest points and nearest neighbours, 512 x 32 -> 128, 256 x 32 -> 256
        -> four attention layers -> [their outputs, their input] -> 1024, LeakyReLU 0.2, maximum over the points
        -> 512 -> 256 -> num_classes

    Parameters at num_classes=40: 2,613,224 external, 2,810,856 self.

    Args:
        num_classes: 40 for ModelNet40.
        attention: "external" or "self", see OffsetAttention.
        position: position term of the attention layers: "linear" (MenghaoGuo/PCT), "affine", with a bias (PCT_Pytorch's
            model_new.py), or "none": a second convolution in its place (both projects' earlier version).
        head_slope: negative slope of the head's ReLUs. 0.2 for weights of PCT_Pytorch, else 0; loading cannot check it.
        samples: points of each sampling stage; the clouds must have at least samples[0].
        neighbours: of each sampled point, itself included.
        width: channels of the first convolutions; each stage doubles them.
        layers: attention layers.
        num_memories: S of the external attention.
        dropout: probability, twice in the head.

    Shape:
        (B, 3, N) coordinates -> logits (B, num_classes).
    """

    def __init__(self, *, num_classes: int = 40, attention: str = "external", position: str = "linear",
                 head_slope: float = 0.0, samples=(512, 256), neighbours: int = 32, width: int = 64, layers: int = 4,
                 num_memories: int = 64, dropout: float = 0.5):
        _check_sizes("PCTClassifier", attention, dropout, num_classes=num_classes, neighbours=neighbours, width=width,
                     layers=layers, num_memories=num_memories)
        if position not in POSITIONS:
            raise ConfigError(f"PCTClassifier: position is {quoted(position)}; expected one of {', '.join(POSITIONS)}")
        samples = tuple(samples)
        if not samples or min(samples[:-1], default=neighbours) < neighbours or samples[-1] < 1 \
                or list(samples) != sorted(samples, reverse=True):
            raise ConfigError(f"PCTClassifier: samples is {quoted(samples)}; expected positive descending numbers, "
                              f"all but the last at least neighbours ({neighbours})")
        self.num_classes, self.samples, self.neighbours = num_classes, samples, neighbours
        _add_stem(self, width)
        for stage in range(len(samples)):
            width *= 2
            setattr(self, f"gather_local_{stage}", LocalAggregation(width))
        self.pt_last = AttentionStack(width, layers, position, attention, num_memories)
        self.conv_fuse = nn.Sequential(PointConv((layers + 1) * width, 4 * width, bias=False), BatchNorm1d(4 * width))
        _add_head(self, 4 * width, num_classes, dropout, head_slope)
        self.key_maps = key_maps(self)

    def execute(self, points):
        b = _check_points("PCTClassifier", points)
        xyz = transpose(points, (0, 2, 1))  # B N 3
        x = _stem(self, points)
        for stage, samples in enumerate(self.samples):
            chosen, centres = sampled(xyz, samples)
            near = knn(centres, xyz, self.neighbours)  # B M K
            first = (jt.arange(b) * xyz.shape[1]).int32().reshape(b, 1)  # where a cloud begins in (C, B N)
            aggregate = getattr(self, f"gather_local_{stage}")
            x = aggregate(x, (chosen + first).reshape(-1), (near + first.unsqueeze(-1)).reshape(-1, self.neighbours))
            xyz = centres
        x = jt.concat([self.pt_last(x, join_clouds(transpose(xyz, (0, 2, 1))), b), x], dim=0)
        return _classify(self, x, b)


class PCTSimpleClassifier(_Classifier):
    """Classification without sampling: ea_pct_cls_simple (PCT's Point_Transformer).

        3 -> 128 -> 128 -> four attention layers -> their outputs -> 1024, LeakyReLU 0.2, maximum over the points
        -> 512 -> 256 -> num_classes

    Parameters at num_classes=40: 1,343,656 external, 1,360,552 self.

    Args: as of PCTClassifier, which explains them.

    Shape:
        (B, 3, N) coordinates -> logits (B, num_classes).
    """

    def __init__(self, *, num_classes: int = 40, attention: str = "external", head_slope: float = 0.0, width: int = 128,
                 layers: int = 4, num_memories: int = 64, dropout: float = 0.5):
        _check_sizes("PCTSimpleClassifier", attention, dropout, num_classes=num_classes, width=width, layers=layers,
                     num_memories=num_memories)
        self.num_classes = num_classes
        _add_stem(self, width)
        _add_layers(self, layers, width, attention, num_memories)
        self.conv_fuse = nn.Sequential(PointConv(layers * width, 8 * width, bias=False), BatchNorm1d(8 * width))
        _add_head(self, 8 * width, num_classes, dropout, head_slope)
        self.key_maps = key_maps(self)

    def execute(self, points):
        b = _check_points("PCTSimpleClassifier", points)
        return _classify(self, _attend(self, _stem(self, points), b), b)


class PCTPartSegmenter(_PointNetwork):
    """Part segmentation: ea_pct_partseg (PCT's Point_Transformer_partseg).

        3 -> 128 -> 128 -> four attention layers -> their outputs -> 1024, LeakyReLU 0.2
        -> [points, their maximum, their mean, category 16 -> 64] -> 512 -> 256 -> num_classes

    Parameters at num_classes=50: 2,429,234 external, 2,446,130 self.

    Args:
        num_classes: parts of all categories together; 50 in ShapeNetPart.
        num_categories: of the shapes; 16 in ShapeNetPart.
        dropout: probability, once in the head.
        others: as of PCTClassifier.

    Shape:
        (B, 3, N) coordinates and (B, num_categories), one-hot -> logits (B, num_classes, N).
    """

    solves = "part_segmentation"

    def __init__(self, *, num_classes: int = 50, num_categories: int = 16, attention: str = "external",
                 width: int = 128, layers: int = 4, num_memories: int = 64, dropout: float = 0.5):
        _check_sizes("PCTPartSegmenter", attention, dropout, num_classes=num_classes, num_categories=num_categories,
                     width=width, layers=layers, num_memories=num_memories)
        self.num_classes, self.num_categories = num_classes, num_categories
        _add_stem(self, width)
        _add_layers(self, layers, width, attention, num_memories)
        self.conv_fuse = nn.Sequential(PointConv(layers * width, 8 * width, bias=False), BatchNorm1d(8 * width))
        self.label_conv = nn.Sequential(PointConv(num_categories, width // 2, bias=False), BatchNorm1d(width // 2))
        self.convs1, self.bns1 = PointConv(24 * width + width // 2, 4 * width), BatchNorm1d(4 * width)
        self.dp1 = nn.Dropout(dropout)
        self.convs2, self.bns2 = PointConv(4 * width, 2 * width), BatchNorm1d(2 * width)
        self.convs3 = PointConv(2 * width, num_classes)
        self.key_maps = key_maps(self)

    def execute(self, points, category):
        b = _check_points("PCTPartSegmenter", points)
        if tuple(category.shape) != (b, self.num_categories):
            raise ValueError(f"PCTPartSegmenter: category has shape {tuple(category.shape)}; expected one-hot rows "
                             f"({b}, {self.num_categories})")
        x = _attend(self, _stem(self, points), b)
        x = _leaky(self.conv_fuse, x)
        clouds = x.reshape(x.shape[0], b, -1)  # C B N
        label = _leaky(self.label_conv, transpose(category.float32(), (1, 0)))
        whole = jt.concat([max_last(clouds), clouds.mean(-1), label], dim=0)  # of each cloud: 2C + 64, B
        # The part of convs1 that is the same for all points of a cloud is computed once.
        weight = self.convs1.matrix()
        of_points = precision.matmul(weight[:, :x.shape[0]], x).reshape(-1, b, clouds.shape[2])
        of_clouds = precision.matmul(weight[:, x.shape[0]:], whole) + self.convs1.bias.unsqueeze(-1)
        x = (of_points + of_clouds.unsqueeze(-1)).reshape(of_clouds.shape[0], -1)
        x = self.dp1(normalised(self.bns1, x))
        x = normalised(self.bns2, self.convs2(x))
        return split_clouds(self.convs3(x), b)

    def fold(self):
        """See jea.nn.fold.folded."""
        fold_norms(vars(self), *_STEM, ("convs1", "bns1"), ("convs2", "bns2"))
        for layers in (self.conv_fuse.layers, self.label_conv.layers):
            fold_norms(layers, ("0", "1"))
        return self


# -- what the three share -----------------------------------------------------------------------------------------

def _leaky(conv_and_norm, x):
    conv, bn = conv_and_norm
    return nn.leaky_relu(normalised(bn, conv(x), relu=False), 0.2)


def _add_stem(model, width: int) -> None:
    model.conv1, model.conv2 = PointConv(3, width, bias=False), PointConv(width, width, bias=False)
    model.bn1, model.bn2 = BatchNorm1d(width), BatchNorm1d(width)


def _stem(model, points):
    return normalised(model.bn2, model.conv2(normalised(model.bn1, model.conv1(join_clouds(points)))))


def _add_layers(model, layers: int, channels: int, attention: str, num_memories: int) -> None:
    model.layers = layers
    for i in range(1, layers + 1):
        setattr(model, f"sa{i}", OffsetAttention(channels, attention, num_memories))


def _attend(model, x, batch: int, position=None):
    """The outputs of all attention layers, one under the other."""
    outputs = []
    for i in range(1, model.layers + 1):
        x = getattr(model, f"sa{i}")(x if position is None else x + position, batch)
        outputs.append(x)
    return jt.concat(outputs, dim=0)


def _add_head(model, channels: int, num_classes: int, dropout: float, slope: float) -> None:
    model.head_slope = slope
    model.linear1, model.bn6 = nn.Linear(channels, channels // 2, bias=False), BatchNorm1d(channels // 2)
    model.linear2, model.bn7 = nn.Linear(channels // 2, channels // 4), BatchNorm1d(channels // 4)
    model.linear3 = nn.Linear(channels // 4, num_classes)
    model.dp1, model.dp2 = nn.Dropout(dropout), nn.Dropout(dropout)


def _classify(model, x, batch: int):
    x = _leaky(model.conv_fuse, x)
    x = transpose(max_last(x.reshape(x.shape[0], batch, -1)), (1, 0))  # B C
    for linear, bn, dropout in ((model.linear1, model.bn6, model.dp1), (model.linear2, model.bn7, model.dp2)):
        x = bn(linear(x), relu=model.head_slope == 0)
        x = dropout(nn.leaky_relu(x, model.head_slope) if model.head_slope else x)
    return model.linear3(x)


def _check_points(name: str, points) -> int:
    """The batch size."""
    if points.ndim != 3 or points.shape[1] != 3:
        raise ValueError(f"{name}: got shape {tuple(points.shape)}; expected coordinates (B, 3, N)")
    return points.shape[0]


def _check_sizes(name: str, attention: str, dropout: float, **sizes) -> None:
    if attention not in ATTENTIONS:
        raise ConfigError(f"{name}: attention is {quoted(attention)}; expected {' or '.join(ATTENTIONS)}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{name}: dropout is {dropout}; expected 0 <= dropout < 1")
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name}: {key} is {value}; expected at least 1")
    if sizes["width"] % 4:
        raise ConfigError(f"{name}: width is {sizes['width']}; expected a multiple of 4")


# -- checkpoints ------------------------------------------------------------------------------------------------
def key_maps(model) -> tuple:
    """PCT_Pytorch's names, and those of Jittor before March 2021, in which a Conv1d held a 4-D Conv named conv.

    In both a self-attention layer's one weight of queries and keys has two names.
    """
    convs = [name for name, module in model.named_modules() if isinstance(module, PointConv)]
    twins = tuple((name.replace("k_conv", "q_conv") + ".", name + ".") for name in convs if name.endswith("k_conv"))
    old = KeyMap(name="PCT, Jittor before March 2021 (MenghaoGuo/PCT)", marker="conv1.conv.", unit_axes=True,
                 twins=twins, rules=tuple((f"{name}.conv.", f"{name}.") for name in convs))
    position = getattr(getattr(model, "pt_last", None), "position", "none")
    rules = (("pt_last.pos_xyz.", "pt_last.conv_pos."),) if position == "affine" else ()
    markers = tuple(theirs for theirs, _ in rules + twins)
    if not markers:
        return (old,)
    return old, KeyMap(name="PCT, PyTorch (PCT_Pytorch) or Jittor", marker=markers, rules=rules, twins=twins)


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's names and shapes tell (keys of any layout).

    PCT_Pytorch's files are told by its name of the position term or, without one, by PyTorch's counters.
    """
    names = {key.replace(".conv.weight", ".weight"): tensor for key, tensor in tensors.items()}
    inferred = {}
    for head in ("linear3.weight", "convs3.weight"):
        if head in names:
            inferred["num_classes"] = int(names[head].shape[0])
    if "label_conv.0.weight" in names:
        inferred["num_categories"] = int(names["label_conv.0.weight"].shape[1])
    memories = next((tensor for key, tensor in names.items() if key.endswith("sa1.linear_0.weight")), None)
    inferred["attention"] = "self" if memories is None else "external"
    if memories is not None:
        inferred["num_memories"] = int(memories.shape[0])
    if any(key.startswith("pt_last.") for key in names):
        affine = {"pt_last.conv_pos.bias", "pt_last.pos_xyz.bias"} & names.keys()
        linear = {"pt_last.conv_pos.weight", "pt_last.pos_xyz.weight"} & names.keys()
        inferred["position"] = "affine" if affine else "linear" if linear else "none"
        if memories is None and ("pt_last.pos_xyz.bias" in names or
                                 inferred["position"] == "none" and "bn1.num_batches_tracked" in names):
            inferred["head_slope"] = 0.2
    return inferred


ENTRY_POINTS = {
    "ea_pct_cls": (PCTClassifier, {}),
    "ea_pct_cls_simple": (PCTSimpleClassifier, {}),
    "ea_pct_partseg": (PCTPartSegmenter, {}),
    # Ours, for the demo and for tests: the same networks, small enough to train on two CPU cores.
    "ea_pct_tiny_cls": (PCTClassifier, {"samples": (128, 64), "neighbours": 16, "width": 16}),
    "ea_pct_tiny_partseg": (PCTPartSegmenter, {"width": 32}),
}
