"""Object detection and instance segmentation: mmdetection's and torchvision's schedules, COCO's scores."""
from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Sequence

from jea import ranks
from jea._jittor import jt
from jea.data import dataset_class, map_ordered, write_image
from jea.data.detection import resizing
from jea.data.detection.grouping import GroupedLoader
from jea.data.detection.rle import runs_of_mask, text_of_runs
from jea.data.files.inputs import PICTURES, Input
from jea.draw.attention import OnPicture
from jea.draw.comparisons import shrunk_size
from jea.draw.objects import beside_truth
from jea.errors import ConfigError
from jea.files import write_bytes
from jea.metrics.detection import STATS, coco_scores, mean_ap, tools
from jea.models import models_for
from jea.models.detection.sampling import Truth
from jea.nn.fold import fuse
from jea.nn.mode import evaluating
from jea.progress import progress as progress_bar
from jea.results import Objects
from jea.tasks.labels import absent_in_evaluation
from jea.tasks.options import detection as options
from jea.tasks.task import Evaluation, Shown, Task, alike, without_name
from jea.training.memory import peak_memory_mb
from jea.training.optimizers import SGD
from jea.training.phase import Phase

LARGE = 2 ** 21  # pixels of a user's picture from which on its masks are made, and it is drawn, smaller: 2048 x 1024
_BUFFERS = ("running_mean", "running_var")


class Detection(Task):
    """Boxes, and masks where the model makes them. Its models are jea.models.detection.Detector, its data sets
    DetectionDatasets."""

    name = "detection"
    Train, Eval, datasets = options.Train, options.Eval, options.DATASETS
    loader_class, shares_evaluation = GroupedLoader, True
    takes, gives = PICTURES, Objects

    def training_data(self):
        return self.dataset().for_training()

    # -- training ---------------------------------------------------------------------------------------------------

    def begin_training(self) -> None:
        super().begin_training()
        tools()  # what evaluations will miss is missed now

    def phases(self, total_steps: int) -> list:
        o, per_epoch = self.options, self.batches_per_epoch
        parameters = [var for name, var in self.model.state_dict().items()
                      if not name.endswith(_BUFFERS) and not var.is_stop_grad()]
        optimizer = SGD(parameters, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)

        def schedule(step: int) -> float:
            rise = 1.0
            if step < o.warmup_steps:
                rise = o.warmup_factor + (1 - o.warmup_factor) * step / o.warmup_steps
            return rise * o.lr_decay ** sum(step >= milestone * per_epoch for milestone in o.milestones)
        return [Phase(name="detection", optimizer=optimizer, losses=self.losses, schedule=schedule)]

    def losses(self, batch: dict) -> dict:
        truths = [Truth(boxes, labels, masks) for boxes, labels, masks in
                  zip(batch["boxes"], batch["labels"], batch["masks"])]
        return self.model.losses(jt.array(batch["image"]), batch["size"].tolist(), truths, seeds=batch["seed"])

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def fuse(self, precision: str = "float32") -> None:
        """Evaluate the fused form of the model from now on (jea.nn.fold); the task no longer trains."""
        self.model, self.modules = fuse(self.model, precision), {}

    def detect(self, dataset, image, original) -> dict:
        """The objects in one prepared picture (3, h, w), for its original size (height, width)."""
        return self.detect_together(dataset.multiple, [image], [original])[0]

    def detect_together(self, multiple: int, images: list, originals: list) -> list:
        """The objects in several prepared pictures (3, h, w) of one size."""
        with evaluating(self.model):
            return self.model(jt.array(resizing.padded(images, multiple)), [image.shape[1:] for image in images],
                              originals)

    def evaluate(self, out, *, split: str | None = None, limit: int | None = None, progress: bool = True) -> Evaluation:
        """Run over a split and score it: {"box AP": ..., "mask AP": ..., all of COCO's numbers, those of the classes,
        ...}.

        Writes detections.json, as COCO's server takes it, and the first `eval.pictures` pictures with boxes and masks
        beside the ground truth. A split without annotations gets no scores. Under mpirun each rank runs every size-th
        picture.
        """
        tools()
        out = Path(out)
        dataset = self.dataset(split or self.eval.split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        numbers, results, seconds, shown = ranks.own(range(count)), [], 0.0, []
        samples = map_ordered(dataset.test_sample, numbers, self.eval.num_workers)
        for number, sample in zip(numbers,
                                  progress_bar(samples, total=len(numbers), title=dataset.split, unit="picture",
                                                        shown=progress and ranks.is_first())):
            started = time.perf_counter()
            found = self.detect(dataset, sample["image"], sample["picture"].shape[:2])
            seconds += time.perf_counter() - started
            results += entries(found, number, dataset.class_ids)
            if number < self.eval.pictures:
                shown.append(self._draw(out, dataset, sample, found))
        parts = ranks.gather((results, seconds, shown))
        results = sorted((result for part in parts for result in part[0]), key=lambda result: result["image_id"])
        seconds = max(part[1] for part in parts)
        values = self._scores(dataset, range(count), results)
        # Scores of the objects of a single class say something: they are told from what is no object.
        values.update(absent_in_evaluation(self.labels(dataset), dataset.count_objects(range(count)), stop=False))
        if ranks.is_first():
            values["results"] = str(self._write(out, dataset, results))
        score = values.get("mask AP" if self.model.masks and dataset.masks else "box AP")
        return Evaluation(score, dict(values, images=count, seconds_per_image=seconds / max(count, 1),
                                      peak_memory_mb=peak_memory_mb()),
                          [entry for part in parts for entry in part[2]])

    def _scores(self, dataset, numbers, results: list) -> dict:
        if not dataset.has_truth():
            return {}
        truth, values, classes = dataset.truth(numbers), {}, {}
        kinds = [("box", "bbox")] + [("mask", "segm")] * bool(self.model.masks and dataset.masks)
        for word, kind in kinds:
            # An entry with a box and a mask counts by its box's area; COCO's own mask scores go by the mask's.
            own = [{key: value for key, value in result.items()
                    if key != ("segmentation" if kind == "bbox" else "bbox")}
                   for result in results]
            scores = coco_scores(truth, own, kind)
            ap = mean_ap(scores)
            values[f"{word} AP"] = math.nan if ap is None else ap
            values.update({f"{word} {name}": scores[name] for name in STATS[1:]})
            classes[f"{word} AP by class"] = scores["classes"]
        first = [key for _, key in sorted((not key.endswith(" AP"), key) for key in values)]
        return {**{key: values[key] for key in first if key.endswith(" AP")}, **values, **classes}

    def _write(self, out: Path, dataset, results: list) -> Path:
        """The detections with the pictures' own ids."""
        out.mkdir(parents=True, exist_ok=True)
        ids, path = [dataset.instances.ids[p] for p in dataset.pictures], out / "detections.json"
        write_bytes(path, json.dumps([dict(result, image_id=ids[result["image_id"]]) for result in results]).encode())
        return path

    def attention_view(self, picture) -> tuple:
        """The backbone's attention in a picture (H, W, 3) uint8."""
        preparation = self.preparation()
        image = preparation.prepared(picture)
        x = resizing.padded([image], preparation.multiple)
        covered = tuple(n / whole for n, whole in zip(image.shape[1:], x.shape[2:]))
        return self.model.backbone, (x,), {"": OnPicture(picture, covered=covered)}

    def _draw(self, out: Path, dataset, sample: dict, found: dict) -> Shown:
        truth = None
        if dataset.has_truth():
            shape, rows = sample["picture"].shape[:2], dataset.objects(sample["number"])
            truth = {"boxes": dataset.corners(rows, shape), "labels": dataset._label[dataset.instances.classes[rows]]}
            if dataset.masks:
                truth["masks"] = [dataset.instances.mask(n, *shape) for n in rows]
        path = out / "pictures" / f"{Path(sample['id']).name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        found = self.shown(found)
        write_image(path, beside_truth(sample["picture"], found, truth, names=dataset.class_names))
        count, panels = len(found["boxes"]), "; found, there, errors" if truth else ""
        return Shown(path, f"{Path(sample['id']).name}: {count} object{'s' * (count != 1)} found{panels}",
                     attention=self.draw_attention(out / "attention" / path.name, sample["picture"]))

    def shown(self, found: dict) -> dict:
        """The detections whose score is high enough to be shown."""
        kept = (found["scores"] >= self.eval.min_score) & (found["labels"] >= 0)
        return {name: values[kept] for name, values in found.items()}

    # -- a user's own pictures ----------------------------------------------------------------------------------------

    def prepare_prediction(self) -> None:
        self._names = self.class_names()
        self._preparation = self.preparation()

    def preparation(self) -> resizing.Preparation:
        """How the config's data set prepares pictures for the network."""
        return resizing.Preparation(**{**self.defaults("data"), **without_name(self._data)})

    def class_names(self) -> tuple:
        known = tuple(dataset_class(self._data["name"]).legend(**without_name(self._data)))
        return known if len(known) == self.num_classes else super().class_names()

    def predict(self, inputs: Sequence[Input]) -> list[Objects]:
        """Find objects in pictures of any size; those of one size run together. The memory is bounded: masks have at
        most LARGE pixels each."""
        found: list = [None] * len(inputs)
        for places in alike([one.value.shape for one in inputs]):
            images = [self._preparation.prepared(inputs[k].value) for k in places]
            originals = [shrunk_size(*inputs[k].value.shape[:2], LARGE) for k in places]
            for k, one in zip(places, self.detect_together(self._preparation.multiple, images, originals)):
                found[k] = Objects(inputs[k], self.shown(one), names=self._names, largest=LARGE)
        return found


class InstanceSegmentation(Detection):
    """Boxes and masks: Detection with a model that makes masks, judged by their AP."""

    name = "instance_segmentation"

    def check_model(self) -> None:
        if getattr(self.model, "solves", "") != "detection" or not self.model.masks:
            fitting = ", ".join(name for name in models_for("detection") if "mask" in name)
            raise ConfigError(f"model.name is {self._model['name']}, which makes no masks; expected one of {fitting}")


def entries(found: dict, number: int, class_ids) -> list:
    """Detections of a picture as COCO's results have them."""
    made = []
    for k, (box, score, label) in enumerate(zip(found["boxes"], found["scores"], found["labels"])):
        if label < 0:  # torchvision's RetinaNet has an output for no class
            continue
        x1, y1, x2, y2 = (float(v) for v in box)
        entry = {"image_id": int(number), "category_id": int(class_ids[label]), "bbox": [x1, y1, x2 - x1, y2 - y1],
                 "score": float(score)}
        if "masks" in found:
            mask = found["masks"][k]
            entry["segmentation"] = {"size": list(mask.shape), "counts": text_of_runs(runs_of_mask(mask))}
        made.append(entry)
    return made
