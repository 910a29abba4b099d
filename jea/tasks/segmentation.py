"""Semantic segmentation: training as upstream's train_torch.py, evaluation as its eval_torch.py and test_torch.py."""
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Sequence

import numpy as np

from jea import ranks
from jea._jittor import jt
from jea.data import DataError, dataset_class, map_ordered, write_image
from jea.data.files.inputs import PICTURES, Input
from jea.data.views.crops import fit_size, normalise, pad_8n1, resize_bilinear
from jea.draw.attention import OnPicture
from jea.draw.charts import bars_png, confusion_png
from jea.draw.comparisons import shrunk, side_by_side
from jea.draw.palettes import voc_palette
from jea.errors import ConfigError
from jea.metrics.segmentation import ConfusionMatrix
from jea.nn.fold import fuse
from jea.nn.mode import freeze_batch_norm
from jea.nn.norm import BatchNorm1d, BatchNorm2d
from jea.ops import cross_entropy
from jea.progress import progress as progress_bar
from jea.results import ClassMap
from jea.tasks.labels import absent_in_evaluation
from jea.tasks.options import segmentation as options
from jea.tasks.picture_logits import PictureLogits, logits_of_pictures
from jea.tasks.pixel_losses import weighted_pixel_cross_entropy
from jea.tasks.task import Evaluation, Shown, Task, alike, without_name
from jea.training.log import say
from jea.training.memory import peak_memory_mb
from jea.training.optimizers import SGD
from jea.training.phase import Phase
from jea.training.schedules import poly

LARGE = 2 ** 21  # pixels of a user's picture from which on it is shrunk: 2048 x 1024
MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # upstream's test scales, each also mirrored


class Segmentation(Task):
    """A class for each pixel. Its models have `low_logits`, `output_stride`, `auxiliary_head`, `with_auxiliary` and a
    `backbone`; its data sets are SegmentationDatasets."""

    name = "segmentation"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS
    _said_large = False
    shares_evaluation = True
    takes, gives = PICTURES, ClassMap

    def __init__(self, **blocks):
        super().__init__(**blocks)
        self.network = self.model  # what evaluation runs
        if self.options.auxiliary_weight and self.model.auxiliary_head is None:
            raise ConfigError(f"train.auxiliary_weight is {self.options.auxiliary_weight}, but the model has no "
                              "auxiliary head; say model.auxiliary=true, or leave the weight out")
        weights = self.options.class_weights
        if weights is not None and len(weights) != self.num_classes:
            raise ConfigError(f"train.class_weights has {len(weights)} factors; the model has {self.num_classes} "
                              f"classes")

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate the fused form of the model from now on (jea.nn.fold); the task no longer trains."""
        self.network, self.model, self.modules = fuse(self.model, precision), None, {}

    def multi_scale(self) -> None:
        """Evaluate as for the published results from now on: six scales, each also mirrored."""
        self.eval.scales, self.eval.flip = MULTI_SCALE, True

    # -- training ---------------------------------------------------------------------------------------------------

    def begin_training(self) -> None:
        super().begin_training()
        if self.options.freeze_batch_norm:
            freeze_batch_norm(self.model)
        self.model.backbone.checkpoint_activations = self.options.checkpoint_activations

    def phases(self, total_steps: int) -> list:
        o = self.options
        weights, norms, biases = parameter_groups(self.model, auxiliary=o.auxiliary_weight > 0)
        others = o.weight_decay if o.decay_all else 0.0
        optimizer = SGD([
            {"params": weights, "lr": o.lr, "weight_decay": o.weight_decay},
            {"params": norms, "lr": o.lr, "weight_decay": others},
            {"params": biases, "lr": o.bias_lr * o.lr, "weight_decay": others},
        ], lr=o.lr, momentum=o.momentum)
        floor = o.min_lr / o.lr

        def schedule(step: int) -> float:
            return floor + (1 - floor) * poly(step, total_steps, power=o.lr_power, every=o.lr_decay_every)
        return [Phase(name="segmentation", optimizer=optimizer, losses=self.losses, schedule=schedule)]

    def losses(self, batch: dict) -> dict:
        o, images, labels = self.options, jt.array(batch["image"]), jt.array(batch["label"])
        if not o.auxiliary_weight:
            return {"loss": self._main_loss(self.model(images), labels)}
        logits, auxiliary = self.model.with_auxiliary(images)
        main_loss, auxiliary_loss = self._main_loss(logits, labels), pixel_cross_entropy(auxiliary, labels)
        return {"loss": main_loss + o.auxiliary_weight * auxiliary_loss, "main_loss": main_loss,
                "auxiliary_loss": auxiliary_loss}

    def _main_loss(self, logits, labels):
        o = self.options
        if o.class_weights is None and o.ohem_threshold is None:
            return pixel_cross_entropy(logits, labels)
        return weighted_pixel_cross_entropy(logits, labels, class_weights=o.class_weights,
                                            ohem_threshold=o.ohem_threshold, ohem_min_kept=o.ohem_min_kept)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def logits(self, image: np.ndarray, *, scales=None, flip=None) -> np.ndarray:
        """Summed logits of one picture: (H, W, 3) uint8 RGB -> (num_classes, H, W) float32; see picture_logits."""
        return self._run(image, scales, flip).full()

    def classes(self, image: np.ndarray, *, scales=None, flip=None) -> np.ndarray:
        """The class of each pixel, (H, W) uint8; on a tie the first. Options as `logits`."""
        return self._run(image, scales, flip).argmax()

    def classes_any_size(self, image: np.ndarray) -> np.ndarray:
        """`classes` in bounded memory and time: what has more than LARGE pixels is looked at in a smaller copy, or,
        where the config says how to look at pictures (eval.fit, eval.mode=slide), its logits are added up more
        sparsely."""
        height, width = image.shape[:2]
        if height * width <= LARGE:
            return self.classes(image)
        if not self._said_large:
            self._said_large = True
            say(f"{width} x {height}: pictures of more than {LARGE:,} pixels are fitted into as many; eval.mode=slide "
                f"goes "
                "over them in windows at their own size, eval.fit=[longer, shorter] chooses another one")
        if self.eval.mode == "whole" and self.eval.fit is None:
            return self._run(shrunk(image, LARGE)).stretch((height, width)).argmax()
        return self._run(image, stride=math.ceil(math.sqrt(height * width / LARGE))).argmax()

    def _run(self, image: np.ndarray, scales=None, flip=None, stride: int = 1) -> PictureLogits:
        return self._run_together([image], scales, flip, stride)[0]

    def _run_together(self, images: list, scales=None, flip=None, stride: int = 1) -> list[PictureLogits]:
        """Run over pictures of one size as the config says."""
        e = self.eval
        return logits_of_pictures(self.network, images, scales=e.scales if scales is None else scales,
                                  flip=e.flip if flip is None else flip, fit=e.fit,
                                  stride=max(stride, e.logit_stride),
                                  window=e.window if e.mode == "slide" else None, window_stride=e.window_stride,
                                  probabilities=e.probabilities)

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Run over a split and score it: {"mIoU": ..., "pAcc": ..., "mAcc": ..., "fwIoU": ..., "IoU": {class: ...},
        ...}.

        Writes the first `eval.pictures` comparisons to out/pictures, a bar chart of the classes' IoU to iou.png and
        the confusion matrix to confusion.png. A split without labels, such as test: instead of scores, the predictions
        are written as the data set's server takes them, as PNGs and as an archive. peak_memory_mb is the process's so
        far. Under mpirun each rank runs every size-th picture and writes what belongs to it.
        """
        out = Path(out)
        dataset = self.dataset(split or self.eval.split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        confusion, labelled = ConfusionMatrix(dataset.num_classes), False
        names, shown, charts = [], [], []
        seconds = 0.0
        numbers = ranks.own(range(count))
        samples = map_ordered(dataset.test_sample, numbers, self.eval.num_workers)
        bar = progress_bar(samples, total=len(numbers), title=dataset.split, unit="picture",
                           shown=progress and ranks.is_first())
        for number, sample in zip(numbers, bar):
            started = time.perf_counter()
            prediction = self.classes(sample["image"])
            seconds += time.perf_counter() - started
            if sample["label"] is None:
                dataset.submission.write(out, sample["id"], prediction, dataset.palette)
                names.append((number, sample["id"]))
            else:
                labelled = True
                confusion.update(prediction, sample["label"])
            if number < self.eval.pictures:
                picture = side_by_side(sample["image"], prediction, sample["label"], palette=dataset.palette,
                                       class_names=dataset.class_names, background=dataset.background)
                path = out / "pictures" / f"{sample['id']}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, picture)
                shown.append(_shown(path, sample, prediction, dataset))
                shown[-1].attention = self.draw_attention(out / "attention" / path.name, sample["image"])
        result = {}
        parts = ranks.gather((labelled, confusion.counts, names, seconds, shown))
        if any(part[0] for part in parts):
            confusion.counts = sum(part[1] for part in parts)
            scores = confusion.scores()
            result = dict(scores, IoU=dict(zip(dataset.class_names, scores["IoU"].tolist())),
                          **absent_in_evaluation(self.labels(dataset), confusion.counts.sum(1), stop=limit is None))
            if ranks.is_first():
                out.mkdir(parents=True, exist_ok=True)
                bars_png(out / "iou.png", result["IoU"], colours=dataset.palette,
                         title=f"IoU, mean {scores['mIoU']:.4f}")
                confusion_png(out / "confusion.png", confusion.shares(), dataset.class_names)
                charts = [Shown(out / "iou.png", "IoU of each class"),
                          Shown(out / "confusion.png", "How the pixels of each class (row) were predicted (column)")]
        names = [name for _, name in sorted(name for part in parts for name in part[2])]
        if names and ranks.is_first():
            result["submission"] = str(dataset.submission.pack(out, names))
        seconds = max(part[3] for part in parts)
        return Evaluation(result.get("mIoU"), dict(result, images=count, seconds_per_image=seconds / max(count, 1),
                                                   peak_memory_mb=peak_memory_mb()),
                          [entry for part in parts for entry in part[4]], charts)

    def attention_view(self, image: np.ndarray) -> tuple:
        """The picture in one piece, at scale 1 and not mirrored, however it is evaluated."""
        image = shrunk(image, LARGE) if image.shape[0] * image.shape[1] > LARGE else image
        size = image.shape[:2] if self.eval.fit is None else fit_size(image.shape[:2], self.eval.fit)
        padded = [pad_8n1(n, self.network.output_stride) for n in size]
        x = np.zeros((1, 3, *padded), np.float32)
        x[0, :, :size[0], :size[1]] = resize_bilinear(normalise(image), size).transpose(2, 0, 1)
        covered = tuple((n - 1) / (whole - 1) for n, whole in zip(size, padded))
        return self.network, (x,), {"": OnPicture(image, covered=covered, aligned=True)}

    def prepare_prediction(self) -> None:
        self._legend = self.legend()

    def predict(self, inputs: Sequence[Input]) -> list[ClassMap]:
        """Segment pictures of any size; small ones of one size run together."""
        names, palette, background = self._legend
        found: list = [None] * len(inputs)
        for places in alike([one.value.shape for one in inputs]):
            height, width, _ = inputs[places[0]].value.shape
            together = max(1, LARGE // (height * width))
            for start in range(0, len(places), together):
                some = places[start:start + together]
                images = [inputs[k].value for k in some]
                maps = [logits.argmax() for logits in self._run_together(images)] if len(some) > 1 else \
                    [self.classes_any_size(images[0])]
                for k, classes in zip(some, maps):
                    found[k] = ClassMap(inputs[k], classes, names=names, palette=palette, background=background,
                                        largest=LARGE)
        return found

    def legend(self) -> tuple:
        """(names of the model's classes, palette, class that overlays leave clear or None); reads no picture."""
        dataset = dataset_class(self._data["name"])
        try:
            names, palette = dataset.legend(**without_name(self._data))
        except DataError:  # its list of classes is not there
            names, palette = (), voc_palette()
        n = self.network.num_classes
        names = tuple(names) if len(names) == n else tuple(f"class {i}" for i in range(n))
        return names, palette, 0 if names[0] == "background" else dataset.background


def _shown(path: Path, sample: dict, prediction: np.ndarray, dataset) -> Shown:
    """A comparison with the mean IoU of its picture alone."""
    if sample["label"] is None:
        return Shown(path, f"{sample['id']}: picture, prediction")
    own = ConfusionMatrix(dataset.num_classes)
    own.update(prediction, sample["label"])
    score = own.scores()["mIoU"]
    return Shown(path, f"{sample['id']}: mIoU {score:.2f}; picture, prediction, label, errors", score)


def parameter_groups(model, *, auxiliary: bool = True) -> tuple:
    """Upstream's three groups: convolution weights, BatchNorm weights, all biases.

    auxiliary: with those of the auxiliary head, where the model has one.
    """
    norms = {id(module.weight) for module in model.modules() if isinstance(module, (BatchNorm1d, BatchNorm2d))}
    weights, norm_weights, biases = [], [], []
    for name, var in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or not auxiliary and name.startswith("auxiliary_head."):
            continue
        (biases if name.endswith("bias") else norm_weights if id(var) in norms else weights).append(var)
    return weights, norm_weights, biases


def pixel_cross_entropy(logits, labels, ignore_index: int = 255):
    """Upstream's loss: -log softmax at the label, 0 at ignored pixels, averaged over *all* pixels of the batch.

    Args:
        logits: (B, C, H, W) float. labels: (B, H, W) int32 in [0, C) or ignore_index.
    Returns:
        Scalar float32. The sum runs in float64: Jittor's float32 sums lose digits over large pictures.
    """
    per_pixel = cross_entropy(logits, labels, ignore_index=ignore_index)
    return (per_pixel.float64().sum() / per_pixel.numel()).float32()
