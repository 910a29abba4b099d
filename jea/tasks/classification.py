"""Image classification: the recipe of EAMLP and T2T-ViT (timm's), evaluation on a centre crop."""
from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Sequence

import numpy as np

from jea import ranks
from jea._jittor import jt
from jea.data import DataError, map_ordered, write_image
from jea.data.files.inputs import PICTURES, Input
from jea.data.files.lists import read_lines
from jea.data.views.augment import EvalView, TrainPicture, TrainView, eval_picture, mix_batch, soft_targets
from jea.data.views.crops import denormalise
from jea.draw.attention import OnPicture
from jea.files import write_bytes
from jea.metrics.classification import ClassificationScores
from jea.nn.fold import fuse
from jea.nn.mode import evaluating
from jea.progress import progress as progress_bar
from jea.results import TopClasses
from jea.tasks.labels import absent_in_evaluation
from jea.tasks.options import classification as options
from jea.tasks.task import Evaluation, Shown, Task
from jea.training.averages import WeightAverage
from jea.training.optimizers import AdamW
from jea.training.phase import Phase
from jea.training.schedules import cosine

NO_DECAY = ("cls_token", "pos_embed")


class Classification(Task):
    """A class for each picture. Its models have an `img_size`."""

    name = "classification"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS
    shares_evaluation = True
    takes, gives = PICTURES, TopClasses

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate the fused form of the model from now on (jea.nn.fold); the task no longer trains."""
        self.model, self.modules = fuse(self.model, precision), {}

    # -- training ---------------------------------------------------------------------------------------------------

    def training_data(self):
        o = self.options
        return TrainView(self.dataset(), TrainPicture(
            size=self.model.img_size, crop_scale=o.crop_scale, crop_ratio=o.crop_ratio, flip=o.flip,
            rand_augment=o.rand_augment, rand_augment_std=o.rand_augment_std, color_jitter=o.color_jitter,
            erase=o.erase))

    def batches(self, epoch: int, start_batch: int):
        """Batches of {"image" (B, 3, H, W), "target" (B, C) float32: smoothed, mixed; "label" (B,), "index" (B,)}."""
        o = self.options
        first = epoch * self.batches_per_epoch + start_batch
        for step, batch in enumerate(self.loader.epoch(epoch, start_batch), first):
            targets = soft_targets(batch["label"], self.model.num_classes, o.label_smoothing)
            # Four numbers, where the loader's generators are seeded with three.
            rng = np.random.Generator(np.random.PCG64((o.seed, 0, 0, step + 1)))
            batch["image"], batch["target"] = mix_batch(batch["image"], targets, rng, mixup=o.mixup, cutmix=o.cutmix,
                                                        prob=o.mix_prob, switch_prob=o.mix_switch_prob)
            yield batch

    def begin_training(self) -> None:
        self._class_list()  # fail now, not at the first evaluation
        super().begin_training()

    def phases(self, total_steps: int) -> list:
        o = self.options
        decayed, others = parameter_groups(self.model)
        optimizer = AdamW([{"params": decayed, "weight_decay": o.weight_decay},
                              {"params": others, "weight_decay": 0.0}], lr=o.lr)
        return [Phase(name="classification", optimizer=optimizer, losses=self.losses,
                      schedule=lambda step: self.rate_factor(step, total_steps),
                      average=WeightAverage(self.model, o.ema_decay) if o.ema_decay else None)]

    def rate_factor(self, step: int, total_steps: int) -> float:
        """The factor of `lr` at a step."""
        o, epoch = self.options, self.batches_per_epoch
        if o.lr_per_epoch:
            step = step // epoch * epoch
        return cosine(step, total_steps, warmup=round(o.warmup_epochs * epoch), warmup_start=o.warmup_lr / o.lr,
                      floor=o.min_lr / o.lr, cooldown=round(o.cooldown_epochs * epoch))

    def losses(self, batch: dict) -> dict:
        logits = self.model(jt.array(batch["image"]))
        return {"loss": soft_cross_entropy(logits, jt.array(batch["target"]))}

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, img_size, img_size) float32, normalised -> logits (B, num_classes) float32."""
        with evaluating(self.model):
            return self.model(jt.array(images)).numpy()

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Run over a split and score it: {"top1": ..., "top5": ..., "mean_class": ..., "worst_classes": [...], ...}.

        "images_per_second" is the network's, without reading the pictures. Writes out/confusion.csv: the pictures
        of each class (row) by the class that was found (column), and the `eval.pictures` pictures whose label has the
        lowest probability to out/pictures. Under mpirun each rank runs every size-th batch.
        """
        dataset = self.dataset(self.eval.split if split is None else split)
        names = _unique(self._class_list() or dataset.class_names)
        Path(out).mkdir(parents=True, exist_ok=True)  # fail now, not after the last batch
        count = len(dataset) if limit is None else min(limit, len(dataset))
        view = EvalView(dataset, self.model.img_size, self.eval.crop_pct)
        scores, seconds, worst_pictures = ClassificationScores(dataset.num_classes), 0.0, []
        starts = range(0, count, self.eval.batch_size)
        chunks = [range(start, min(start + self.eval.batch_size, count)) for start in starts]
        chunks = ranks.own(chunks)
        batches = map_ordered(view.test_batch, chunks, self.eval.num_workers)
        bar = progress_bar(batches, total=len(chunks), title=str(dataset.split), unit="batch",
                           shown=progress and ranks.is_first())
        for chunk, (images, labels) in zip(chunks, bar):
            started = time.perf_counter()
            logits = self.logits(images)
            seconds += time.perf_counter() - started
            scores.update(logits, labels)
            worst_pictures = self._worst_pictures(worst_pictures, chunk, images, labels, logits)
        parts = ranks.gather((scores, seconds, worst_pictures))
        scores, seconds = ClassificationScores(dataset.num_classes), max(part[1] for part in parts)
        for part, _, _ in parts:
            scores.merge(part)
        result, shown = scores.scores(), []
        if ranks.is_first():
            _write_confusion(Path(out) / "confusion.csv", names, result["confusion"])
            shown = self._write_worst(Path(out) / "pictures", names, [entry for part in parts for entry in part[2]])
        worst = [{"class": names[c], "accuracy": accuracy, "taken_for": {names[j]: share for j, share in others}}
                 for c, accuracy, others in scores.worst(self.eval.worst)]
        absent = absent_in_evaluation(self.labels(dataset), scores.labelled, stop=limit is None)
        return Evaluation(result["top1"], {
            "top1": result["top1"], "top5": result["top5"], "mean_class": result["mean_class"], "images": count,
            "images_per_second": count / max(seconds, 1e-9), "worst_classes": worst, **absent}, shown)

    def _worst_pictures(self, kept: list, numbers, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> list:
        """[(probability of the label, number, label, prediction, picture), ...] of the worst so far."""
        logits = logits.astype(np.float64)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        found = exponentials[np.arange(len(labels)), labels] / exponentials.sum(1)
        for k in np.argsort(found, kind="stable")[:self.eval.pictures]:
            kept.append((float(found[k]), numbers[int(k)], int(labels[k]), int(logits[k].argmax()), images[k]))
        return sorted(kept, key=lambda entry: entry[:2])[:self.eval.pictures]

    def _write_worst(self, folder: Path, names, worst: list) -> list:
        """Write the worst pictures as they were seen; [Shown, ...]."""
        shown = []
        for probability, number, label, prediction, picture in sorted(worst,
                                                                      key=lambda entry: entry[:2])[:self.eval.pictures]:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number:06d}.png"
            write_image(path, denormalise(picture))
            shown.append(Shown(path, f"picture {number}: {names[label]}, taken for {names[prediction]}; probability of "
                                     f"the "
                                     f"label {probability:.2f}" if prediction != label else
                               f"picture {number}: {names[label]}, probability {probability:.2f}", probability,
                               self.draw_attention(folder.parent / "attention" / path.name, picture)))
        return shown

    def attention_view(self, picture: np.ndarray) -> tuple:
        """picture: (H, W, 3) uint8, whose centre is looked at, or (3, S, S) float32 as the network takes it."""
        if picture.dtype == np.uint8:
            picture = eval_picture(picture, self.model.img_size, self.eval.crop_pct)
        return self.model, (picture[None],), {"": OnPicture(denormalise(picture))}

    def prepare_prediction(self) -> None:
        self._names = self.class_names()

    def predict(self, inputs: Sequence[Input]) -> list[TopClasses]:
        """The probabilities of each picture's classes; its centre is looked at, as in `evaluate`."""
        pictures = [eval_picture(one.value, self.model.img_size, self.eval.crop_pct) for one in inputs]
        found = []
        for one, logits in zip(inputs, self.logits(np.stack(pictures)).astype(np.float64)):
            shares = np.exp(logits - logits.max())
            found.append(TopClasses(one, shares / shares.sum(), names=self._names))
        return found

    def class_names(self) -> tuple:
        """Names of the model's classes: of eval.class_list, else as other tasks have them."""
        return _unique(self._class_list() or super().class_names())

    def _class_list(self):
        return read_class_list(self.eval.class_list, self.model.num_classes) if self.eval.class_list else None


def parameter_groups(model) -> tuple:
    """(decayed, not decayed) by timm's rule: no weight decay for vectors, biases, cls_token and pos_embed. What is
    frozen is in neither."""
    decayed, others = [], []
    for name, var in model.state_dict().items():
        if not var.is_stop_grad():
            (others if var.ndim <= 1 or name.endswith((".bias", *NO_DECAY)) else decayed).append(var)
    return decayed, others


def soft_cross_entropy(logits, targets):
    """Mean over the batch of -sum(targets * log softmax(logits)): logits and targets (B, C) float32 -> scalar."""
    shifted = logits - logits.max(1, keepdims=True).stop_grad()
    log_share = shifted - shifted.exp().sum(1, keepdims=True).log()
    return -(targets * log_share).sum(1).mean()


def read_class_list(path, num_classes: int) -> tuple:
    """Class names from a text file, one per line; a wnid before the name (n01440764 tench, Tinca tinca) is left out."""
    names = [re.sub(r"^n\d{8}\s+", "", line) for line in read_lines(Path(path).expanduser(), "class list") if line]
    if len(names) != num_classes:
        raise DataError(f"{path}: {len(names)} classes in the list, the model has {num_classes}")
    return tuple(names)


def _unique(names) -> tuple:
    """Names that stand twice (ImageNet has two cranes) get their class index added."""
    names = list(names)
    return tuple(name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names))


def _write_confusion(path: Path, names, counts: np.ndarray) -> None:
    def quoted(name):
        return '"' + name.replace('"', '""') + '"'
    rows = [",".join(["label", *map(quoted, names)])]
    rows += [",".join([quoted(name), *map(str, row.tolist())]) for name, row in zip(names, counts)]
    write_bytes(path, ("\n".join(rows) + "\n").encode())
