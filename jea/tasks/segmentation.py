"""Semantic segmentation: training as upstream's train_torch.py, evaluation as its eval_torch.py and test_torch.py."""
from __future__ import annotations

import io
import sys
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from jea._jittor import jt, nn
from jea.data import DATASETS, DataError, Loader, list_inputs, map_ordered, read_image, write_image, write_index_png
from jea.data.images import write_bytes
from jea.data.palette import VOC_CLASSES, voc_palette
from jea.data.pictures import side_by_side
from jea.data.transforms import normalise, pad_8n1
from jea.metrics.segmentation import ConfusionMatrix
from jea.models import create_model
from jea.nn.fused import fuse
from jea.nn.mode import evaluating, freeze_batch_norm
from jea.nn.norm import BatchNorm1d, BatchNorm2d
from jea.ops import resize_bilinear
from jea.tasks.base import Phase, TrainOptions

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # upstream's test scales, each also mirrored
SUBMISSION = "results/VOC2012/Segmentation/comp6_test_cls"  # what the VOC server wants; comp6: any training data


class Segmentation:
    """The segmentation task of a config.

    Args:
        model: {"name": ..., keywords of jea.create_model}.
        data: {"name": ..., keywords of the data set}; its `split` is for training.
        train, eval: fields of Train and Eval.
    """

    @dataclass
    class Train(TrainOptions):
        lr: float = 0.009  # of convolution weights and BatchNorm weights; biases have twice as much
        momentum: float = 0.9
        weight_decay: float = 1.0e-4  # of convolution weights only
        lr_power: float = 0.9  # lr x (1 - step / steps) ^ lr_power ...
        lr_decay_every: int = 10  # ... evaluated at multiples of this many steps
        freeze_batch_norm: bool = False  # use the running statistics; for small batches

    @dataclass
    class Eval:
        split: str = "val"
        scales: Sequence[float] = (1.0,)
        flip: bool = False  # add the logits of the mirrored picture
        pictures: int = 20  # how many side-by-side pictures are written
        num_workers: int = 2  # processes that read pictures ahead

    def __init__(self, *, model: dict, data: dict, train: Optional[dict] = None, eval: Optional[dict] = None):
        self.options = self.Train(**(train or {}))
        self.eval = self.Eval(**(eval or {}))
        self._model, self._data = dict(model), dict(data)
        jt.set_global_seed(self.options.seed)
        self.model = create_model(self._model["name"], **{k: v for k, v in self._model.items() if k != "name"})
        self.modules = {"model": self.model}
        self.network = self.model  # what evaluation runs
        self.description = {"task": "segmentation", "model": self._model, "data": self._data,
                            "train": asdict(self.options)}
        self._loader = None

    def fuse(self) -> None:
        """Evaluate the fused form of the model from now on (jea.nn.fused); the task no longer trains."""
        self.network, self.model, self.modules = fuse(self.model), None, {}

    def close(self) -> None:
        """End the worker processes."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def dataset(self, split: Optional[str] = None):
        """The data set of the config, of the config's split or of another one."""
        arguments = {k: v for k, v in self._data.items() if k != "name"}
        if split is not None:
            arguments["split"] = split
        dataset = DATASETS[self._data["name"]](**arguments)
        if dataset.num_classes != self.network.num_classes:
            raise DataError(f"{dataset.root}: has {dataset.num_classes} classes, the model {self.network.num_classes}; "
                            "set model.num_classes")
        return dataset

    # -- training ---------------------------------------------------------------------------------------------------

    @property
    def loader(self) -> Loader:
        if self._loader is None:
            self._loader = Loader(self.dataset(), batch_size=self.options.batch_size, seed=self.options.seed,
                                  num_workers=self.options.num_workers)
        return self._loader

    @property
    def batches_per_epoch(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start_batch: int):
        return self.loader.epoch(epoch, start_batch)

    def begin_training(self) -> None:
        self.model.train()
        if self.options.freeze_batch_norm:
            freeze_batch_norm(self.model)

    def phases(self, total_steps: int) -> list:
        o = self.options
        weights, norms, biases = parameter_groups(self.model)
        optimizer = nn.SGD([
            {"params": weights, "lr": o.lr, "weight_decay": o.weight_decay},
            {"params": norms, "lr": o.lr, "weight_decay": 0.0},
            {"params": biases, "lr": 2 * o.lr, "weight_decay": 0.0},
        ], lr=o.lr, momentum=o.momentum)
        return [Phase(name="segmentation", optimizer=optimizer, losses=self.losses,
                      schedule=lambda step: poly(step, total_steps, power=o.lr_power, every=o.lr_decay_every))]

    def losses(self, batch: dict) -> dict:
        logits = self.model(jt.array(batch["image"]))
        return {"loss": pixel_cross_entropy(logits, jt.array(batch["label"]))}

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def logits(self, image: np.ndarray, *, scales=None, flip=None) -> np.ndarray:
        """Summed logits of one picture: (H, W, 3) uint8 RGB -> (num_classes, H, W) float32.

        The normalised picture is resized to each scale, padded at the right and bottom with the mean colour to a size
        of 8n + 1 (16n + 1 at output stride 16), run, cropped, resized back and added up; then all scales again
        mirrored. No softmax.
        """
        scales = self.eval.scales if scales is None else scales
        flip = self.eval.flip if flip is None else flip
        x = np.ascontiguousarray(normalise(image).transpose(2, 0, 1)[None])
        height, width = x.shape[2:]
        stride = self.network.output_stride
        total = np.zeros((self.network.num_classes, height, width), np.float32)
        with evaluating(self.network):
            for mirrored in (False, True) if flip else (False,):
                source = jt.array(np.ascontiguousarray(x[..., ::-1]) if mirrored else x)
                for scale in scales:
                    h, w = max(1, int(scale * height)), max(1, int(scale * width))
                    padded = np.zeros((1, 3, pad_8n1(h, stride), pad_8n1(w, stride)), np.float32)
                    padded[:, :, :h, :w] = resize_bilinear(source, (h, w)).numpy()
                    logits = self.network(jt.array(padded)).numpy()[:, :, :h, :w]
                    logits = resize_bilinear(jt.array(np.ascontiguousarray(logits)), (height, width)).numpy()[0]
                    total += logits[..., ::-1] if mirrored else logits
        return total

    def predict(self, image: np.ndarray, **options) -> np.ndarray:
        """The class of each pixel, (H, W) uint8; on a tie the first. Options as `logits`."""
        return self.logits(image, **options).argmax(0).astype(np.uint8)

    def evaluate(self, out_dir, *, split: Optional[str] = None, limit: Optional[int] = None,
                 progress: bool = True) -> dict:
        """Run over a split and score it: {"mIoU": ..., "pAcc": ..., "mAcc": ..., "fwIoU": ..., "IoU": {class: ...}, ...}.

        Writes the first `eval.pictures` comparisons to out_dir/pictures. The split "test" has no labels: instead of
        scores, the predictions are written for the VOC server, as PNGs and as the archive that it takes.
        """
        out_dir = Path(out_dir)
        dataset = self.dataset(split or self.eval.split)
        count = len(dataset) if limit is None else min(limit, len(dataset))
        confusion, labelled = ConfusionMatrix(dataset.num_classes), False
        names = []
        seconds = 0.0
        samples = map_ordered(dataset.test_sample, range(count), self.eval.num_workers)
        for number, sample in enumerate(_bar(samples, count, dataset.split, progress)):
            started = time.perf_counter()
            prediction = self.predict(sample["image"])
            seconds += time.perf_counter() - started
            if sample["label"] is None:
                (out_dir / SUBMISSION).mkdir(parents=True, exist_ok=True)
                write_index_png(out_dir / SUBMISSION / f"{sample['id']}.png", prediction, dataset.palette)
                names.append(sample["id"])
            else:
                labelled = True
                confusion.update(prediction, sample["label"])
            if number < self.eval.pictures:
                picture = side_by_side(sample["image"], prediction, sample["label"], palette=dataset.palette,
                                       class_names=dataset.class_names)
                (out_dir / "pictures").mkdir(parents=True, exist_ok=True)
                write_image(out_dir / "pictures" / f"{sample['id']}.png", picture)
        result = {}
        if labelled:
            scores = confusion.scores()
            result = dict(scores, IoU=dict(zip(dataset.class_names, scores["IoU"].tolist())))
        if names:
            archive = out_dir / "results.tar"
            write_submission(archive, out_dir / SUBMISSION, names)
            result["submission"] = str(archive)
        return dict(result, images=count, seconds_per_image=seconds / max(count, 1))

    def predict_files(self, path, out_dir, *, progress: bool = True) -> dict:
        """Segment a picture or a folder of pictures; EXIF rotation is honoured. Writes <name>.png (class indices with the
        VOC palette) and <name>_overlay.png to out_dir."""
        out_dir, files = Path(out_dir), list_inputs(path)
        out_dir.mkdir(parents=True, exist_ok=True)
        palette, class_names = voc_palette(), self.class_names()
        written, taken = [], set()
        for file in _bar(files, len(files), "pictures", progress):
            image = read_image(file, exif=True)
            prediction = self.predict(image)
            stem = file.stem if file.stem not in taken else file.name  # a.jpg and a.png in one folder
            taken.add(stem)
            write_index_png(out_dir / f"{stem}.png", prediction, palette)
            write_image(out_dir / f"{stem}_overlay.png",
                        side_by_side(image, prediction, palette=palette, class_names=class_names))
            present, pixels = np.unique(prediction, return_counts=True)
            shares = {class_names[c]: round(n / prediction.size, 4) for c, n in zip(present, pixels)}
            written.append({"input": str(file), "prediction": str(out_dir / f"{stem}.png"), "classes": shares})
        return {"images": len(written), "files": written}

    def class_names(self) -> tuple:
        """Names of the model's classes, without touching the data."""
        from jea.data.shapes import SHAPES_CLASSES
        known = {"shapes": SHAPES_CLASSES, "voc": self._data.get("class_names", VOC_CLASSES)}[self._data["name"]]
        n = self.network.num_classes
        return tuple(known) if len(known) == n else tuple(f"class {i}" for i in range(n))


def parameter_groups(model) -> tuple:
    """Upstream's three groups: convolution weights, BatchNorm weights, all biases."""
    norms = {id(module.weight) for module in model.modules() if isinstance(module, (BatchNorm1d, BatchNorm2d))}
    weights, norm_weights, biases = [], [], []
    for name, var in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            continue
        (biases if name.endswith("bias") else norm_weights if id(var) in norms else weights).append(var)
    return weights, norm_weights, biases


def poly(step: int, total: int, *, power: float, every: int) -> float:
    """(1 - s / total) ^ power with s = step rounded down to a multiple of `every` (upstream train_torch.py)."""
    return (1 - step // every * every / total) ** power


def pixel_cross_entropy(logits, labels, ignore_index: int = 255):
    """Upstream's loss: -log softmax at the label, 0 at ignored pixels, averaged over *all* pixels of the batch.

    Args:
        logits: (B, C, H, W) float. labels: (B, H, W) int32 in [0, C) or ignore_index.
    Returns:
        Scalar float32. The sum runs in float64: Jittor's float32 sums lose digits over large pictures.
    """
    shifted = logits - logits.max(1, keepdims=True).stop_grad()
    log_sum = shifted.exp().sum(1).log()  # B H W
    labels = labels.unsqueeze(1)
    at_label = jt.ternary(jt.index(logits.shape, 1) == labels.broadcast(logits.shape), shifted,
                          jt.zeros_like(shifted)).sum(1)
    per_pixel = jt.ternary(labels.squeeze(1) == ignore_index, jt.zeros_like(log_sum), log_sum - at_label)
    return (per_pixel.float64().sum() / per_pixel.numel()).float32()


def write_submission(archive: Path, folder: Path, names) -> None:
    """The tar that the VOC server takes: results/VOC2012/Segmentation/comp6_test_cls/<id>.png."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in names:
            data = (folder / f"{name}.png").read_bytes()
            member = tarfile.TarInfo(f"{SUBMISSION}/{name}.png")  # no time, no user: equal content, equal archive
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    write_bytes(archive, stream.getvalue())


def _bar(items, total: int, title: str, shown: bool):
    from tqdm import tqdm
    return tqdm(items, total=total, desc=title, unit="picture", dynamic_ncols=True, disable=not shown, file=sys.stderr,
                mininterval=0.1 if sys.stderr.isatty() else 10)
